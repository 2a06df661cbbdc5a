// What the files of training define, once per instruction set.

#pragma once

#include "../training_kernels.h"
#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

void affine_act(const AffineAct& f, ConstPixels x, ConstPixels residual, Pixels target,
                int64_t pixels, int64_t channels);
void affine_act_backward(const AffineAct& f, const AffineActInputs& inputs,
                         const AffineActTargets& targets, const AffineSums& sums, int64_t pixels,
                         int64_t channels);
void stats_gradient(const StatsGradient& f, ConstPixels grad, ConstPixels y, Pixels target,
                    int64_t pixels, int64_t channels);
void moments(ConstPixels y, int64_t pixels, int64_t channels, const float* pivot, float* deviation,
             float* square);
void wgrad(const WgradTile& tile);
void wgrad_lanes(const WgradTile& tile, int64_t group_width);
void winograd_gradient(const WinogradTiles& tiles, const GradientPixels& gradient);
void winograd_taps(const float* sums, ptrdiff_t position_stride, int64_t channels, float* taps);
void max_pool_places(const PlacedPoolRow& placed);
void max_pool_gradient(const PoolGradientRow& row);

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

// What each file of this folder defines, once per instruction set.

#pragma once

#include "../microkernels.h"
#include "../split.h"
#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

extern const int64_t kIgemmPanelChannels;
extern const int64_t kIgemmWidePanelChannels;
extern const int64_t kIgemmWidePanelPixels;
void igemm(const ConvTile& tile);
void lanes(const ConvTile& tile, int64_t group_width);
void grouped(const ConvTile& tile, int64_t group_width);
void arrange_grouped(const float* packed, int64_t blocks, int64_t taps, int64_t group_width,
                     float* arranged);
void dot(const DotTile& tile);
void winograd_input(const WinogradTiles& tiles, const float* input, ptrdiff_t row_stride,
                    ptrdiff_t pixel_stride, int64_t rows, int64_t pixels);
void winograd_output(const WinogradTiles& tiles, const ConvTile& output);
void pack_direct(const PackSource& source, float* block);
void pack_winograd(const PackSource& source, float* block, ptrdiff_t position_stride);
void widen(const void* source, StorageType type, float* target, int64_t count);
void narrow(const float* source, StorageType type, void* target, int64_t count);
void max_pool(const PoolRow& row);
uint64_t hash(const void* data, size_t bytes);
double fma_burn(int64_t iterations);
// With AVX-512 only.
template <int kParts>
bool split_pixels(const SplitPixels& pixels);
template <int kParts>
bool split_weights(const SplitWeights& weights);
void round_weight_rows(const WeightRows& weight);
template <int kParts>
bool split_columns(const SplitPixels& pixels);
template <int kParts>
bool split_transposed(const SplitPixels& pixels);
template <int kParts>
bool split_igemm(const SplitTile& tile, const ConvTile& output);

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

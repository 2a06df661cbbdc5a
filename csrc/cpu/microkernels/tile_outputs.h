// What becomes of a tile's sums: shift, residual and activation, of some pixels and some vectors of
// output channels.

#pragma once

#include <algorithm>

#include "activation.h"
#include "kernels.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

// The sums of kPixels pixels in each of kRows rows of outputs: rows of a few pixels come two at a
// time, since weights are loaded once for a tile.
template <int kRows, int kPixels, int kVecs>
struct TileSums {
  Vec at[kRows * kPixels][kVecs];
};

// Where the i-th of a tile's pixels is.
template <int kPixels>
[[gnu::always_inline]] inline ptrdiff_t offset_of(int i, ptrdiff_t row_stride,
                                                  ptrdiff_t pixel_stride) {
  return i / kPixels * row_stride + i % kPixels * pixel_stride;
}

// Adds the tile's shift and residual, applies ReLU and stores, each of them to all pixels: what `t`
// says is read once. Other activations run over the stored tile, to keep their code out of the
// loops.
template <int kRows, int kPixels, int kVecs>
[[gnu::always_inline]] inline void finish(const ConvTile& t, const float* shift,
                                          const float* residual, float* output,
                                          TileSums<kRows, kPixels, kVecs>& sums) {
  constexpr int kAll = kRows * kPixels;
  Vec shifts[kVecs];
#pragma GCC unroll 3
  for (int j = 0; j < kVecs; ++j) shifts[j] = load(shift + j * kLanes);
#pragma GCC unroll 16
  for (int i = 0; i < kAll; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) sums.at[i][j] += shifts[j];
  }
  if (residual != nullptr) {
#pragma GCC unroll 16
    for (int i = 0; i < kAll; ++i) {
      const float* from =
          residual + offset_of<kPixels>(i, t.residual_row_stride, t.residual_pixel_stride);
#pragma GCC unroll 3
      for (int j = 0; j < kVecs; ++j) sums.at[i][j] += load(from + j * kLanes);
    }
  }
  const Activation act = t.act;
  if (act == Activation::relu) {
#pragma GCC unroll 16
    for (int i = 0; i < kAll; ++i) {
#pragma GCC unroll 3
      for (int j = 0; j < kVecs; ++j) sums.at[i][j] = at_least(sums.at[i][j], Vec{});
    }
  }
  const ptrdiff_t row_stride = t.output_row_stride;
  const ptrdiff_t pixel_stride = t.output_pixel_stride;
#pragma GCC unroll 16
  for (int i = 0; i < kAll; ++i) {
    float* to = output + offset_of<kPixels>(i, row_stride, pixel_stride);
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) store(to + j * kLanes, sums.at[i][j]);
  }
  if (act == Activation::relu || act == Activation::none) return;
  for (int i = 0; i < kAll; ++i) {
    float* to = output + offset_of<kPixels>(i, row_stride, pixel_stride);
    for (int j = 0; j < kVecs; ++j) {
      store(to + j * kLanes, activate(load(to + j * kLanes), act, t.act_slope));
    }
  }
}

// The same of so many channels as do not fill the vectors.
template <int kRows, int kPixels, int kVecs>
void finish_partial(const ConvTile& t, int64_t channels, const float* shift, const float* residual,
                    float* output, const TileSums<kRows, kPixels, kVecs>& sums) {
  for (int i = 0; i < kRows * kPixels; ++i) {
    float* to = output + offset_of<kPixels>(i, t.output_row_stride, t.output_pixel_stride);
    const ptrdiff_t from = offset_of<kPixels>(i, t.residual_row_stride, t.residual_pixel_stride);
    for (int j = 0; j < kVecs; ++j) {
      const int64_t count = std::min<int64_t>(kLanes, channels - j * kLanes);
      if (count <= 0) break;
      Vec v = sums.at[i][j] + load_partial(shift + j * kLanes, count);
      if (residual != nullptr) v += load_partial(residual + from + j * kLanes, count);
      v = activate(v, t.act, t.act_slope);
      store_partial(to + j * kLanes, v, count);
    }
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

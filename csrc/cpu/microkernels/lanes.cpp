// Depthwise convolution, and with 2 channels a group.
//
// A vector of output channels spans several groups. For input channel c of each group, one
// in-register shuffle spreads that channel over its group's lanes; with stride 1 the shuffled input
// serves all three taps of a row.

#include <algorithm>
#include <utility>

#include "kernels.h"
#include "spread.h"
#include "tile_outputs.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kMaxPixels = kLanes == 16 ? 14 : 8;
constexpr int kVecsPerBlock = 16 / kLanes;

// Input channel c of the groups of output channels [channel, channel + kLanes).
template <int kGroup, bool kPartial>
inline Vec gather(const float* pixel, int64_t channel, int c, int64_t count) {
  const Vec x = kPartial ? load_partial(pixel + channel, count) : load(pixel + channel);
  if constexpr (kGroup == 1) return x;
  return spread<kGroup>(x, c);
}

// Input values are loaded again for each channel of a group, as part of the shuffle: kept in
// registers they would push the accumulators out.
inline void reload_inputs() { asm volatile("" : : : "memory"); }

// One vector of output channels.
struct Slice {
  const float* weights;
  int64_t channel;
  int64_t count;
};

// Three taps a row, neighbouring output pixels read neighbouring input pixels.
template <int kGroup, int kPixels, bool kPartial>
inline void accumulate_sliding(const ConvTile& t, const float* input, Slice slice, Vec* acc) {
  const float* weights = slice.weights;
  for (int64_t r = 0; r < t.tap_rows; ++r) {
    const float* row = input + r * t.tap_row_stride;
#pragma GCC unroll 8
    for (int c = 0; c < kGroup; ++c) {
      reload_inputs();
      const Vec w0 = load(weights + c * 16);
      const Vec w1 = load(weights + (kGroup + c) * 16);
      const Vec w2 = load(weights + (2 * kGroup + c) * 16);
#pragma GCC unroll 16
      for (int q = 0; q < kPixels + 2; ++q) {
        const Vec x =
            gather<kGroup, kPartial>(row + q * t.input_pixel_stride, slice.channel, c, slice.count);
        if (q < kPixels) acc[q] += x * w0;
        if (q >= 1 && q - 1 < kPixels) acc[q - 1] += x * w1;
        if (q >= 2) acc[q - 2] += x * w2;
      }
    }
    weights += 3 * kGroup * 16;
  }
}

template <int kGroup, int kPixels, bool kPartial>
inline void accumulate(const ConvTile& t, const float* input, Slice slice, Vec* acc) {
  const float* weights = slice.weights;
  for (int64_t r = 0; r < t.tap_rows; ++r) {
    for (int64_t s = 0; s < t.tap_cols; ++s) {
      const float* tap = input + r * t.tap_row_stride + s * t.tap_col_stride;
#pragma GCC unroll 8
      for (int c = 0; c < kGroup; ++c) {
        reload_inputs();
        const Vec w = load(weights);
#pragma GCC unroll 16
        for (int i = 0; i < kPixels; ++i) {
          acc[i] += w * gather<kGroup, kPartial>(tap + i * t.input_pixel_stride, slice.channel, c,
                                                 slice.count);
        }
        weights += 16;
      }
    }
  }
}

template <int kGroup, int kPixels, bool kPartial>
void tile(const ConvTile& t, const float* input, const float* residual, float* output,
          Slice slice) {
  Vec acc[kPixels] = {};
  if (t.tap_cols == 3 && t.input_pixel_stride == t.tap_col_stride) {
    accumulate_sliding<kGroup, kPixels, kPartial>(t, input, slice, acc);
  } else {
    accumulate<kGroup, kPixels, kPartial>(t, input, slice, acc);
  }
  TileSums<1, kPixels, 1> sums;
#pragma GCC unroll 16
  for (int i = 0; i < kPixels; ++i) sums.at[i][0] = acc[i];
  const float* shift = t.shift + slice.channel;
  if (residual != nullptr) residual += slice.channel;
  output += slice.channel;
  if constexpr (kPartial) {
    finish_partial(t, slice.count, shift, residual, output, sums);
  } else {
    finish(t, shift, residual, output, sums);
  }
}

using Tile = void (*)(const ConvTile&, const float*, const float*, float*, Slice);

// Only vectors that are full: a partial one, at most one a row, goes pixel by pixel.
template <int kGroup, int... kPixelsMinusOne>
Tile full_tile(int64_t pixels, std::integer_sequence<int, kPixelsMinusOne...>) {
  static constexpr Tile kTiles[] = {tile<kGroup, kPixelsMinusOne + 1, false>...};
  return kTiles[pixels - 1];
}

template <int kGroup>
void row_of_slice(const ConvTile& t, int64_t row, Slice slice) {
  const float* input = t.input + row * t.input_row_stride;
  const float* residual =
      t.residual != nullptr ? t.residual + row * t.residual_row_stride : nullptr;
  float* output = t.output + row * t.output_row_stride;
  const bool partial = slice.count < kLanes;
  const int64_t tiles = partial ? t.pixels : (t.pixels + kMaxPixels - 1) / kMaxPixels;
  const int64_t width = t.pixels / tiles;
  const int64_t wider = t.pixels % tiles;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t pixels = width + (i < wider ? 1 : 0);
    const Tile run = partial
                         ? tile<kGroup, 1, true>
                         : full_tile<kGroup>(pixels, std::make_integer_sequence<int, kMaxPixels>{});
    run(t, input, residual, output, slice);
    input += pixels * t.input_pixel_stride;
    if (residual != nullptr) residual += pixels * t.residual_pixel_stride;
    output += pixels * t.output_pixel_stride;
  }
}

template <int kGroup>
void rows(const ConvTile& t) {
  for (int64_t row = 0; row < t.rows; ++row) {
    for (int64_t channel = 0; channel < t.out_channels; channel += kLanes) {
      const int64_t vec = channel / kLanes;
      const float* weights =
          t.weights + vec / kVecsPerBlock * t.weight_block_stride + vec % kVecsPerBlock * kLanes;
      const int64_t count = std::min<int64_t>(kLanes, t.out_channels - channel);
      row_of_slice<kGroup>(t, row, Slice{weights, channel, count});
    }
  }
}

}  // namespace

void lanes(const ConvTile& t, int64_t group_width) { group_width == 1 ? rows<1>(t) : rows<2>(t); }

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

// Weight gradient: a register tile of input channels x 16 output channels, summed over pixels.

#include <algorithm>
#include <utility>

#include "training.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kVecs = 16 / kLanes;  // a block of output channels
// Accumulators, the block's gradient and one broadcast fill the registers.
constexpr int kMaxChannels = kLanes == 16 ? 16 : kLanes == 8 ? 6 : 2;

// Pixels after which the registers are added to a total in memory, at the end of a row: see
// kProductsPerSum in igemm.cpp.
constexpr int64_t kPixelsPerSum = 48;

template <int kChannels>
struct Sums {
  Vec at[kChannels][kVecs] = {};

  inline void add(const Sums& other) {
#pragma GCC unroll 16
    for (int i = 0; i < kChannels; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) at[i][j] += other.at[i][j];
    }
  }
};

template <int kChannels>
void tile(const WgradTile& t, const float* input, float* sums) {
  Sums<kChannels> acc, total;
  const float* grad = t.grad;
  const ptrdiff_t pixel_stride = t.input_pixel_stride;
  int64_t summed = 0;
  for (int64_t n = 0; n < t.images; ++n) {
    for (int64_t row = 0; row < t.rows; ++row) {
      const float* x = input + n * t.input_image_stride + row * t.input_row_stride;
      for (int64_t pixel = 0; pixel < t.pixels; ++pixel) {
        Vec g[kVecs];
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) g[j] = load(grad + j * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < kChannels; ++i) {
          const Vec value = broadcast(x[i]);
#pragma GCC unroll 4
          for (int j = 0; j < kVecs; ++j) acc.at[i][j] += value * g[j];
        }
        grad += 16;
        x += pixel_stride;
      }
      summed += t.pixels;
      if (summed >= kPixelsPerSum) {
        total.add(acc);
        acc = {};
        summed = 0;
      }
    }
  }
  total.add(acc);
#pragma GCC unroll 16
  for (int i = 0; i < kChannels; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      float* p = sums + i * 16 + j * kLanes;
      store(p, load(p) + total.at[i][j]);
    }
  }
}

using Tile = void (*)(const WgradTile&, const float*, float*);

template <int... kChannelsMinusOne>
Tile tile_of(int64_t channels, std::integer_sequence<int, kChannelsMinusOne...>) {
  static constexpr Tile kTiles[] = {tile<kChannelsMinusOne + 1>...};
  return kTiles[channels - 1];
}

}  // namespace

void wgrad(const WgradTile& t) {
  // Tiles of nearly equal width: 16 channels are 6 + 5 + 5, not 6 + 6 + 4.
  const int64_t tiles = (t.channels + kMaxChannels - 1) / kMaxChannels;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = t.channels * i / tiles;
    const int64_t channels = t.channels * (i + 1) / tiles - first;
    tile_of(channels, std::make_integer_sequence<int, kMaxChannels>{})(t, t.input + first,
                                                                       t.sums + first * 16);
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

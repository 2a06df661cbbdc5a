// Weight gradient: a register tile of input channels x 16 or 32 output channels, summed over
// pixels.

#include <algorithm>
#include <utility>

#include "training.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kVecsPerBlock = 16 / kLanes;
// Blocks of output channels of a tile: two vectors, which share every broadcast.
constexpr int kMaxBlocks = kLanes == 16 ? 2 : 1;
// Accumulators, the blocks' gradients and one broadcast fill the registers.
template <int kVecs>
constexpr int kMaxChannels = kLanes == 16  ? (kVecs == 2 ? 12 : 16)
                             : kLanes == 8 ? 6
                                           : 2;

// Pixels after which the registers are added to the sums in memory: see kProductsPerSum in
// igemm.cpp.
constexpr int64_t kPixelsPerSum = 128;

template <int kChannels, int kVecs>
struct Sums {
  Vec at[kChannels][kVecs] = {};

  inline void add_to(float* sums, ptrdiff_t block_stride) {
#pragma GCC unroll 16
    for (int i = 0; i < kChannels; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) {
        float* p = sums + j / kVecsPerBlock * block_stride + i * 16 + j % kVecsPerBlock * kLanes;
        store(p, load(p) + at[i][j]);
        at[i][j] = Vec{};
      }
    }
  }
};

// Where the next pixel of a run is.
struct Pixel {
  const float* x;
  const float* grad;
};

// kCount adjacent pixels.
template <int kCount, int kChannels, int kVecs>
[[gnu::always_inline]] inline void add_some(Pixel& at, ptrdiff_t x_stride, ptrdiff_t grad_stride,
                                            Sums<kChannels, kVecs>& acc) {
#pragma GCC unroll 8
  for (int pixel = 0; pixel < kCount; ++pixel) {
    if (kCount > 1) {
      keep_loads_behind(at.x);
      keep_loads_behind(at.grad);
    }
    Vec g[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) g[j] = load(at.grad + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kChannels; ++i) {
      const Vec value = broadcast(at.x[i]);
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) multiply_add(acc.at[i][j], value, g[j]);
    }
    at.grad += grad_stride;
    at.x += x_stride;
  }
}

// A run of adjacent pixels.
template <int kChannels, int kVecs>
inline void add_pixels(Pixel at, ptrdiff_t x_stride, ptrdiff_t grad_stride, int64_t pixels,
                       Sums<kChannels, kVecs>& acc) {
  int64_t pixel = 0;
  for (; pixel + kUnrolled <= pixels; pixel += kUnrolled) {
    add_some<kUnrolled>(at, x_stride, grad_stride, acc);
  }
  for (; pixel < pixels; ++pixel) add_some<1>(at, x_stride, grad_stride, acc);
}

template <int kChannels, int kVecs>
void tile(const WgradTile& t, int64_t first_channel) {
  Sums<kChannels, kVecs> acc;
  float* sums = t.sums + first_channel * 16;
  int64_t summed = 0;
  for (int64_t n = 0; n < t.images; ++n) {
    for (int64_t row = 0; row < t.rows; ++row) {
      const float* x =
          t.input + n * t.input_image_stride + row * t.input_row_stride + first_channel;
      const float* grad = t.grad + n * t.grad_image_stride + row * t.grad_row_stride;
      for (int64_t pixel = 0; pixel < t.pixels;) {
        const int64_t run = std::min(kPixelsPerSum, t.pixels - pixel);
        add_pixels({x + pixel * t.input_pixel_stride, grad + pixel * t.grad_pixel_stride},
                   t.input_pixel_stride, t.grad_pixel_stride, run, acc);
        pixel += run;
        summed += run;
        if (summed < kPixelsPerSum) continue;
        acc.add_to(sums, t.sums_block_stride);
        summed = 0;
      }
    }
  }
  if (summed > 0) acc.add_to(sums, t.sums_block_stride);
}

using Tile = void (*)(const WgradTile&, int64_t);

template <int kVecs, int... kChannelsMinusOne>
Tile tile_of(int64_t channels, std::integer_sequence<int, kChannelsMinusOne...>) {
  static constexpr Tile kTiles[] = {tile<kChannelsMinusOne + 1, kVecs>...};
  return kTiles[channels - 1];
}

template <int kBlocks>
void all_channels(const WgradTile& t) {
  constexpr int kVecs = kBlocks * kVecsPerBlock;
  constexpr int kMax = kMaxChannels<kVecs>;
  // Tiles of nearly equal width: 16 channels are 6 + 5 + 5, not 6 + 6 + 4.
  const int64_t tiles = (t.channels + kMax - 1) / kMax;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = t.channels * i / tiles;
    const int64_t channels = t.channels * (i + 1) / tiles - first;
    tile_of<kVecs>(channels, std::make_integer_sequence<int, kMax>{})(t, first);
  }
}

}  // namespace

void wgrad(const WgradTile& t) {
  if (t.blocks == kMaxBlocks) return all_channels<kMaxBlocks>(t);
  WgradTile one = t;
  for (int64_t block = 0; block < t.blocks; ++block) {
    all_channels<1>(one);
    one.grad += 16;
    one.sums += t.sums_block_stride;
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

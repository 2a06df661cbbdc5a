// Grouped convolution with 4 or 8 channels a group: products are summed where the input is.
//
// A vector of input channels is read with each pair's first or second channel in both of its lanes,
// which the load itself does. Sum d takes the products for the output channel d lanes away (lane
// xor d, d even), so that no shuffle is needed until a tile's sums are complete: with one for each
// channel of a group before, shuffles took the multipliers' port for a quarter of the time.

#include <algorithm>
#include <cstring>
#include <utility>

#include "fetching.h"
#include "kernels.h"
#include "spread.h"
#include "tile_outputs.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kBlock = 16;  // output channels
constexpr int kAccumulators = kLanes == 16 ? 24 : 12;

// Sums a pixel has for a vector of output channels, one for each pair that it may read.
template <int kGroup>
constexpr int kSums = std::min(kGroup, kLanes) / 2;
template <int kGroup>
constexpr int kMaxPixels = kAccumulators / kSums<kGroup>;

// A block's weights as the sums use them: [taps][2][pairs][16]. Lane l of [tap][e][p] multiplies
// input channel (l with its last bit e) for output channel (l xor 2 p).
template <int kGroup>
void arrange_block(const float* packed, int64_t taps, float* arranged) {
  constexpr int kPairs = kGroup / 2;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const float* from = packed + tap * kGroup * kBlock;
#pragma GCC unroll 2
    for (int e = 0; e < 2; ++e) {
#pragma GCC unroll 4
      for (int pair = 0; pair < kPairs; ++pair) {
#pragma GCC unroll 8
        for (int lane = 0; lane < kBlock; lane += 2) {
          const int channel = lane % kGroup + e;
          std::memcpy(arranged + lane, from + channel * kBlock + (lane ^ (2 * pair)),
                      2 * sizeof(float));
        }
        arranged += kBlock;
      }
    }
  }
}

// One vector of output channels.
struct Slice {
  const float* weights;
  int vec;  // in the block
  int64_t channel;
  int64_t count;
};

template <int kPixels, int kSumsEach>
struct Sums {
  Vec at[kPixels][kSumsEach];
};

// Products of one tap and one vector of input channels.
template <int kGroup, int kPixels, bool kPartial, bool kSecond>
inline void accumulate(const float* x, ptrdiff_t pixel_stride, const float* weights, int64_t count,
                       Sums<kPixels, kSums<kGroup>>& sums) {
  Vec w[kSums<kGroup>];
#pragma GCC unroll 4
  for (int d = 0; d < kSums<kGroup>; ++d) w[d] = load(weights + d * kBlock);
#pragma GCC unroll 16
  for (int i = 0; i < kPixels; ++i) {
    const float* p = x + i * pixel_stride;
    const Vec pairs = duplicate<kSecond>(kPartial ? load_partial(p, count) : load(p));
#pragma GCC unroll 4
    for (int d = 0; d < kSums<kGroup>; ++d) sums.at[i][d] += pairs * w[d];
  }
}

// Brings each sum's lanes to their output channels.
template <int kSumsLeft>
inline Vec join(Vec* sums) {
  if constexpr (kSumsLeft == 1) {
    return sums[0];
  } else {
    constexpr int kHalf = kSumsLeft / 2;
#pragma GCC unroll 4
    for (int d = 0; d < kHalf; ++d) sums[d] += exchange<2 * kHalf>(sums[d + kHalf]);
    return join<kHalf>(sums);
  }
}

template <int kGroup, int kPixels, bool kPartial>
void tile(const ConvTile& t, const float* input, const float* residual, float* output,
          const Slice& slice) {
  constexpr int kGroupVecs = std::max(1, kGroup / kLanes);
  constexpr ptrdiff_t kHalf = kGroup / 2 * kBlock;  // weights of one channel of each pair
  Sums<kPixels, kSums<kGroup>> sums = {};
  const float* weights = slice.weights;
  // Of the vectors that the group has, input vector u is read for output vector `vec`: the sums
  // for channels u ^ vec vectors away.
  const int vec = slice.vec % kGroupVecs;
  const float* first = input - vec * kLanes;
  for (int64_t r = 0; r < t.tap_rows; ++r) {
    for (int64_t s = 0; s < t.tap_cols; ++s) {
      const float* tap = first + r * t.tap_row_stride + s * t.tap_col_stride;
#pragma GCC unroll 4
      for (int u = 0; u < kGroupVecs; ++u) {
        const float* w = weights + (u ^ vec) * kSums<kGroup> * kBlock + (u - vec) * kLanes;
        const float* x = tap + u * kLanes;
        accumulate<kGroup, kPixels, kPartial, false>(x, t.input_pixel_stride, w, slice.count, sums);
        accumulate<kGroup, kPixels, kPartial, true>(x, t.input_pixel_stride, w + kHalf, slice.count,
                                                    sums);
      }
      weights += 2 * kHalf;
    }
  }
  TileSums<1, kPixels, 1> joined;
#pragma GCC unroll 16
  for (int i = 0; i < kPixels; ++i) joined.at[i][0] = join<kSums<kGroup>>(sums.at[i]);
  const float* shift = t.shift + slice.channel;
  if constexpr (kPartial) {
    finish_partial(t, slice.count, shift, residual, output, joined);
  } else {
    finish(t, shift, residual, output, joined);
  }
}

using Tile = void (*)(const ConvTile&, const float*, const float*, float*, const Slice&);

// Only vectors that are full: a partial one, at most one a row, goes pixel by pixel.
template <int kGroup, int... kPixelsMinusOne>
Tile full_tile(int64_t pixels, std::integer_sequence<int, kPixelsMinusOne...>) {
  static constexpr Tile kTiles[] = {tile<kGroup, kPixelsMinusOne + 1, false>...};
  return kTiles[pixels - 1];
}

template <int kGroup>
int64_t tiles_per_row(const ConvTile& t) {
  return (t.pixels + kMaxPixels<kGroup> - 1) / kMaxPixels<kGroup>;
}

template <int kGroup>
void row_of_slice(const ConvTile& t, int64_t row, const Slice& slice, Fetching& fetching) {
  constexpr int kMax = kMaxPixels<kGroup>;
  const float* input = t.input + row * t.input_row_stride + slice.channel;
  const float* residual =
      t.residual == nullptr ? nullptr : t.residual + row * t.residual_row_stride + slice.channel;
  float* output = t.output + row * t.output_row_stride + slice.channel;
  const bool partial = slice.count < kLanes;
  // Tiles of nearly equal width.
  const int64_t tiles = partial ? t.pixels : tiles_per_row<kGroup>(t);
  const int64_t width = t.pixels / tiles;
  const int64_t wider = t.pixels % tiles;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t pixels = width + (i < wider ? 1 : 0);
    const Tile run = partial ? tile<kGroup, 1, true>
                             : full_tile<kGroup>(pixels, std::make_integer_sequence<int, kMax>{});
    fetching.step();
    run(t, input, residual, output, slice);
    input += pixels * t.input_pixel_stride;
    if (residual != nullptr) residual += pixels * t.residual_pixel_stride;
    output += pixels * t.output_pixel_stride;
  }
}

template <int kGroup>
void blocks(const ConvTile& t) {
  const int64_t vecs = (t.out_channels + kLanes - 1) / kLanes;
  Fetching fetching(t.upcoming, t.rows * vecs * tiles_per_row<kGroup>(t));
  for (int64_t first = 0; first < t.out_channels; first += kBlock) {
    const int64_t end = std::min<int64_t>(first + kBlock, t.out_channels);
    const float* weights = t.weights + first / kBlock * t.weight_block_stride;
    for (int64_t row = 0; row < t.rows; ++row) {
      // All of a block, while the lines that its vectors share are in the level-1 cache.
      for (int64_t channel = first; channel < end; channel += kLanes) {
        const int vec = static_cast<int>((channel - first) / kLanes);
        const int64_t count = std::min<int64_t>(kLanes, end - channel);
        row_of_slice<kGroup>(t, row, {weights + vec * kLanes, vec, channel, count}, fetching);
      }
    }
  }
}

}  // namespace

void arrange_grouped(const float* packed, int64_t blocks, int64_t taps, int64_t group_width,
                     float* arranged) {
  const int64_t stride = taps * group_width * kBlock;
  for (int64_t at = 0; at < blocks * stride; at += stride) {
    if (group_width == 4) {
      arrange_block<4>(packed + at, taps, arranged + at);
    } else {
      arrange_block<8>(packed + at, taps, arranged + at);
    }
  }
}

void grouped(const ConvTile& t, int64_t group_width) {
  group_width == 4 ? blocks<4>(t) : blocks<8>(t);
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

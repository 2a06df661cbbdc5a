// A tile of outputs whose sums stay in registers: some pixels by some vectors of output channels.
//
// For every tap and input channel it broadcasts one input value per pixel and multiplies it with a
// panel of packed weights.

#pragma once

#include "kernels.h"
#include "tile_outputs.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

// 14 x 2 accumulators, 2 weights and a broadcast fill AVX-512's 32 registers; 6 x 2 fill 16.
constexpr int kMaxPixels = kLanes == 16 ? 14 : 6;
constexpr int kMaxVecs = 2;
// Few "pixels" by many "channels", for inputs whose rows are a power of two apart: the lines of
// more than eight of them would push each other out of the level-1 cache.
constexpr int kWideVecs = kLanes == 16 ? 3 : kMaxVecs;
constexpr int kWidePixels = kLanes == 16 ? 8 : kMaxPixels;

constexpr int max_pixels(int vecs) { return vecs > kMaxVecs ? kWidePixels : kMaxPixels; }
constexpr int kVecsPerBlock = 16 / kLanes;
constexpr int64_t kLineBytes = 64;
constexpr int kLineFloats = kLineBytes / sizeof(float);

// Pixels addressed off one pointer, by 0, 1 and 2 strides: what x86's addressing modes offer.
constexpr int kPixelsPerPointer = 3;

// Input channels for which a line is fetched.
constexpr int kChannelsPerFetch = kLanes == 8 ? 4 : 1;

// Walks over a share of what comes next while a tile computes. Without it the first tile of a
// panel of weights waits for the shared cache: with 7 tiles a panel that was a sixth of the time.
struct Prefetch {
  const char* at;
  ptrdiff_t step;  // bytes at a time
};

// Where a tile reads next.
struct Cursor {
  const float* input;
  const float* weights;
  Prefetch prefetch;
};

// Where a register tile reads. Its methods are inlined, so that all of it is in registers.
template <int kRows, int kPixels, int kVecs>
struct Operands {
  static constexpr int kRowPointers = (kPixels + kPixelsPerPointer - 1) / kPixelsPerPointer;
  static constexpr int kPointers = kRows * kRowPointers;

  [[gnu::always_inline]] Operands(const ConvTile& t, const Cursor& at)
      : weights(at.weights),
        block_stride(t.weight_block_stride),
        pixel_stride(t.input_pixel_stride),
        prefetch(at.prefetch) {
#pragma GCC unroll 8
    for (int g = 0; g < kPointers; ++g) {
      pointers[g] = at.input + g / kRowPointers * t.input_row_stride +
                    kPixelsPerPointer * (g % kRowPointers) * pixel_stride;
    }
  }

  [[gnu::always_inline]] void move(ptrdiff_t floats) {
#pragma GCC unroll 8
    for (int g = 0; g < kPointers; ++g) pointers[g] += floats;
  }

  // The next kCount input channels of all pixels.
  template <int kCount>
  [[gnu::always_inline]] void multiply(TileSums<kRows, kPixels, kVecs>& sums) {
#pragma GCC unroll 8
    for (int c = 0; c < kCount; ++c) {
      if (c % kChannelsPerFetch == 0) {
        __builtin_prefetch(prefetch.at, 0, 2);
        prefetch.at += prefetch.step;
      }
      if (kCount > 1) keep_order();
      Vec w[kVecs];
#pragma GCC unroll 3
      for (int j = 0; j < kVecs; ++j) {
        w[j] = load(weights + (j / kVecsPerBlock) * block_stride + (j % kVecsPerBlock) * kLanes +
                    16 * c);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kRows * kPixels; ++i) {
        const int pixel = i % kPixels;
        const float* pointer = pointers[i / kPixels * kRowPointers + pixel / kPixelsPerPointer];
        const Vec x = broadcast(pointer[(pixel % kPixelsPerPointer) * pixel_stride + c]);
#pragma GCC unroll 3
        for (int j = 0; j < kVecs; ++j) multiply_add(sums.at[i][j], x, w[j]);
      }
    }
    weights += 16 * kCount;
    move(kCount);
  }

  [[gnu::always_inline]] void keep_order() {
    keep_loads_behind(weights);
    keep_loads_behind(pixel_stride);
#pragma GCC unroll 8
    for (int g = 0; g < kPointers; ++g) keep_loads_behind(pointers[g]);
  }

  const float* pointers[kPointers];
  const float* weights;
  ptrdiff_t block_stride;
  ptrdiff_t pixel_stride;
  Prefetch prefetch;
};

// How often a tile fetches a line in so many input channels of a tap.
constexpr int64_t fetches(int64_t channels) {
  return channels / kUnrolled * (kUnrolled / kChannelsPerFetch) + channels % kUnrolled;
}

// Adds the products of rows x cols taps, `channels` adjacent input values each.
template <int kRows, int kPixels, int kVecs>
[[gnu::always_inline]] inline void add_taps(const ConvTile& t, int64_t rows, int64_t cols,
                                            int64_t channels, Cursor& at,
                                            TileSums<kRows, kPixels, kVecs>& sums) {
  Operands<kRows, kPixels, kVecs> operands(t, at);
  const ptrdiff_t next_col = t.tap_col_stride - channels;
  const ptrdiff_t next_row = t.tap_row_stride - cols * t.tap_col_stride;
  int64_t left = cols;  // of the row
  for (int64_t tap = 0; tap < rows * cols; ++tap) {
    int64_t c = 0;
    for (; c + kUnrolled <= channels; c += kUnrolled) operands.template multiply<kUnrolled>(sums);
    for (; c < channels; ++c) operands.template multiply<1>(sums);
    ptrdiff_t step = next_col;
    if (--left == 0) {
      left = cols;
      step += next_row;
    }
    operands.move(step);
  }
  at.weights = operands.weights;
  at.prefetch = operands.prefetch;
}

// Fetches a tile's lines of the residual or the output before finish() needs them: they are far
// apart, so that no hardware prefetcher foresees them.
template <int kRows, int kPixels, int kVecs>
[[gnu::always_inline]] inline void fetch_lines(const float* first, ptrdiff_t row_stride,
                                               ptrdiff_t pixel_stride) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kPixels; ++i) {
    const float* pixel = first + offset_of<kPixels>(i, row_stride, pixel_stride);
#pragma GCC unroll 3
    for (int channel = 0; channel < kVecs * kLanes; channel += kLineFloats) {
      __builtin_prefetch(pixel + channel, 0, 3);
    }
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

// Implicit-GEMM convolution: a register tile of output pixels x output channels.
//
// For every tap and input channel the tile broadcasts one input value per pixel and multiplies it
// with a panel of packed weights. Accumulators stay in registers over the whole reduction, so the
// output is written once, with shift, residual and activation applied.

#include <algorithm>
#include <utility>

#include "activation.h"
#include "kernels.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

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

// So many input channels between two branches, and a line fetched for every four of them: where
// another thread has every second cycle of the front end, each instruction that multiplies nothing
// counts. AVX-512's tiles have twice the products.
constexpr int kUnrolled = kLanes == 8 ? 8 : 1;
constexpr int kChannelsPerFetch = kLanes == 8 ? 4 : 1;

// Of kPixels pixels in each of kRows rows of outputs: rows of a few pixels come two at a time,
// since weights are loaded once for a tile.
template <int kRows, int kPixels, int kVecs>
struct Accumulators {
  Vec at[kRows * kPixels][kVecs];
};

// One running sum over thousands of products loses digits that many short ones keep: after this
// many products the registers are added to a total in memory. At 256 the rounding error of a
// 512-channel 3x3 is a quarter of a single sum's, for 1 % of the time.
constexpr int64_t kProductsPerSum = 256;
// A tap, or a row of them, of at least so many products is a sum of its own: of 4x1 taps of 64
// channels the error is 1.3 times that of eager's NCHW, and was 2.4 times.
constexpr int64_t kProductsAlone = 64;

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
  bool first;  // nothing has been summed yet
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
  [[gnu::always_inline]] void multiply(Vec (&acc)[kRows * kPixels][kVecs]) {
#pragma GCC unroll 8
    for (int c = 0; c < kCount; ++c) {
      if (c % kChannelsPerFetch == 0) {
        __builtin_prefetch(prefetch.at, 0, 2);
        prefetch.at += prefetch.step;
      }
      if (kCount > 1) stay_here();
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
        for (int j = 0; j < kVecs; ++j) multiply_add(acc[i][j], x, w[j]);
      }
    }
    weights += 16 * kCount;
    move(kCount);
  }

  // The loads of an unrolled step stay behind the step before: the compiler would move them ahead
  // of it, and spill accumulators, or work out all their addresses before the loop.
  [[gnu::always_inline]] void stay_here() {
    asm volatile("" : "+r"(pixel_stride), "+r"(weights));
#pragma GCC unroll 8
    for (int g = 0; g < kPointers; ++g) asm volatile("" : "+r"(pointers[g]));
  }

  const float* pointers[kPointers];
  const float* weights;
  ptrdiff_t block_stride;
  ptrdiff_t pixel_stride;
  Prefetch prefetch;
};

// Adds the products of rows x cols taps, `channels` adjacent input values each, to the total. Not
// inlined: the compiler would give registers to the total and spill the accumulators.
template <int kRows, int kPixels, int kVecs>
[[gnu::noinline]] void multiply_taps(const ConvTile& t, int64_t rows, int64_t cols,
                                     int64_t channels, Cursor& at,
                                     Accumulators<kRows, kPixels, kVecs>& total) {
  Operands<kRows, kPixels, kVecs> operands(t, at);
  Vec acc[kRows * kPixels][kVecs] = {};
  const ptrdiff_t next_col = t.tap_col_stride - channels;
  const ptrdiff_t next_row = t.tap_row_stride - cols * t.tap_col_stride;
  int64_t left = cols;  // of the row
  for (int64_t tap = 0; tap < rows * cols; ++tap) {
    int64_t c = 0;
    for (; c + kUnrolled <= channels; c += kUnrolled) {
      operands.template multiply<kUnrolled>(acc);
    }
    for (; c < channels; ++c) operands.template multiply<1>(acc);
    ptrdiff_t step = next_col;
    if (--left == 0) {
      left = cols;
      step += next_row;
    }
    operands.move(step);
  }
  at.weights = operands.weights;
  at.prefetch = operands.prefetch;
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kPixels; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) {
      total.at[i][j] = at.first ? acc[i][j] : total.at[i][j] + acc[i][j];
    }
  }
  at.first = false;
}

template <int kRows, int kPixels, int kVecs>
inline void multiply(const ConvTile& t, const float* input, Prefetch prefetch,
                     Accumulators<kRows, kPixels, kVecs>& total) {
  Cursor at{input, t.weights, prefetch, true};
  const int64_t row_products = t.tap_cols * t.channels;
  if (row_products <= kProductsPerSum && t.channels < kProductsAlone) {
    const int64_t rows_per_sum = row_products < kProductsAlone ? kProductsPerSum / row_products : 1;
    for (int64_t r = 0; r < t.tap_rows; r += rows_per_sum) {
      at.input = input + r * t.tap_row_stride;
      multiply_taps(t, std::min(rows_per_sum, t.tap_rows - r), t.tap_cols, t.channels, at, total);
    }
    return;
  }
  for (int64_t r = 0; r < t.tap_rows; ++r) {
    for (int64_t s = 0; s < t.tap_cols; ++s) {
      const float* tap = input + r * t.tap_row_stride + s * t.tap_col_stride;
      for (int64_t c = 0; c < t.channels; c += kProductsPerSum) {
        at.input = tap + c;
        multiply_taps(t, 1, 1, std::min(kProductsPerSum, t.channels - c), at, total);
      }
    }
  }
}

// Where the i-th of a tile's pixels is.
template <int kPixels>
[[gnu::always_inline]] inline ptrdiff_t offset_of(int i, ptrdiff_t row_stride,
                                                  ptrdiff_t pixel_stride) {
  return i / kPixels * row_stride + i % kPixels * pixel_stride;
}

// Adds shift and residual and stores; activations other than ReLU run over the stored tile, to keep
// their code out of the unrolled loops.
template <int kRows, int kPixels, int kVecs>
inline void finish(const ConvTile& t, const float* residual, float* output,
                   Accumulators<kRows, kPixels, kVecs>& acc) {
  const bool relu = t.act == Activation::relu;
  Vec shift[kVecs];
#pragma GCC unroll 3
  for (int j = 0; j < kVecs; ++j) shift[j] = load(t.shift + j * kLanes);
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kPixels; ++i) {
    float* to = output + offset_of<kPixels>(i, t.output_row_stride, t.output_pixel_stride);
    const ptrdiff_t from = offset_of<kPixels>(i, t.residual_row_stride, t.residual_pixel_stride);
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) {
      Vec v = acc.at[i][j] + shift[j];
      if (residual != nullptr) v += load(residual + from + j * kLanes);
      if (relu) v = at_least(v, Vec{});
      store(to + j * kLanes, v);
    }
  }
  if (relu || t.act == Activation::none) return;
  for (int i = 0; i < kRows * kPixels; ++i) {
    float* to = output + offset_of<kPixels>(i, t.output_row_stride, t.output_pixel_stride);
    for (int j = 0; j < kVecs; ++j) {
      store(to + j * kLanes, activate(load(to + j * kLanes), t.act, t.act_slope));
    }
  }
}

// The last panel of a group whose channels do not fill it.
template <int kRows, int kPixels, int kVecs>
void finish_partial(const ConvTile& t, const float* residual, float* output,
                    const Accumulators<kRows, kPixels, kVecs>& acc) {
  for (int i = 0; i < kRows * kPixels; ++i) {
    float* to = output + offset_of<kPixels>(i, t.output_row_stride, t.output_pixel_stride);
    const ptrdiff_t from = offset_of<kPixels>(i, t.residual_row_stride, t.residual_pixel_stride);
    for (int j = 0; j < kVecs; ++j) {
      const int64_t count = std::min<int64_t>(kLanes, t.out_channels - j * kLanes);
      if (count <= 0) break;
      Vec v = acc.at[i][j] + load_partial(t.shift + j * kLanes, count);
      if (residual != nullptr) v += load_partial(residual + from + j * kLanes, count);
      v = activate(v, t.act, t.act_slope);
      store_partial(to + j * kLanes, v, count);
    }
  }
}

// Fetches a tile's lines of the residual or the output before finish() needs them: they are far
// apart, so that no hardware prefetcher foresees them.
template <int kRows, int kPixels, int kVecs>
inline void fetch_lines(const float* first, ptrdiff_t row_stride, ptrdiff_t pixel_stride) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kPixels; ++i) {
    const float* pixel = first + offset_of<kPixels>(i, row_stride, pixel_stride);
#pragma GCC unroll 3
    for (int channel = 0; channel < kVecs * kLanes; channel += kLineFloats) {
      __builtin_prefetch(pixel + channel, 0, 3);
    }
  }
}

template <int kRows, int kPixels, int kVecs>
void tile(const ConvTile& t, const float* input, const float* residual, float* output,
          Prefetch prefetch) {
  if (residual != nullptr) {
    fetch_lines<kRows, kPixels, kVecs>(residual, t.residual_row_stride, t.residual_pixel_stride);
  }
  fetch_lines<kRows, kPixels, kVecs>(output, t.output_row_stride, t.output_pixel_stride);
  Accumulators<kRows, kPixels, kVecs> acc;
  multiply(t, input, prefetch, acc);
  if (t.out_channels == kVecs * kLanes) {
    finish(t, residual, output, acc);
  } else {
    finish_partial(t, residual, output, acc);
  }
}

using Tile = void (*)(const ConvTile&, const float*, const float*, float*, Prefetch);

template <int kRows, int kVecs, int... kPixelsMinusOne>
Tile tile_of(int64_t pixels, std::integer_sequence<int, kPixelsMinusOne...>) {
  static constexpr Tile kTiles[] = {tile<kRows, kPixelsMinusOne + 1, kVecs>...};
  return kTiles[pixels - 1];
}

// Spreads what is to be fetched over all tiles of a call.
class TileFetching {
 public:
  TileFetching(const ConvTile& t, int64_t tiles) : t_(t) {
    int64_t floats = 0;
    for (const FloatSpan& span : t.upcoming.spans) floats += span.count;
    if (floats == 0) return;
    const int64_t steps = t.tap_rows * t.tap_cols *
                          (t.channels / kUnrolled * (kUnrolled / kChannelsPerFetch) +
                           t.channels % kUnrolled);
    const auto bytes = floats * static_cast<int64_t>(sizeof(float));
    step_ = std::min<int64_t>(kLineBytes, bytes / (tiles * steps) + 1);
    tile_floats_ = step_ * steps / static_cast<int64_t>(sizeof(float));
  }

  // Of the next tile, which is of one span.
  Prefetch next() {
    while (span_ < FetchList::kSpans && done_ >= t_.upcoming.spans[span_].count) {
      ++span_;
      done_ = 0;
    }
    if (step_ == 0 || span_ == FetchList::kSpans) {
      return {reinterpret_cast<const char*>(t_.weights), 0};
    }
    const float* at = t_.upcoming.spans[span_].data + done_;
    done_ += tile_floats_;
    return {reinterpret_cast<const char*>(at), step_};
  }

 private:
  const ConvTile& t_;
  ptrdiff_t step_ = 0;
  int64_t tile_floats_ = 0;
  int span_ = 0;
  int64_t done_ = 0;
};

// The tiles of a band.
template <int kVecs>
class Tiles {
 public:
  explicit Tiles(const ConvTile& t) : t_(t), fetching_(t, bands() * tiles()) {}

  void run() {
    for (int64_t row = 0; row < t_.rows; row += rows_at_once()) {
      const float* input = t_.input + row * t_.input_row_stride;
      const float* residual =
          t_.residual != nullptr ? t_.residual + row * t_.residual_row_stride : nullptr;
      float* output = t_.output + row * t_.output_row_stride;
      if (row + 1 < t_.rows && rows_at_once() == 2) {
        run_tile<2>(t_.pixels, input, residual, output);
      } else {
        run_row(input, residual, output);
      }
    }
  }

 private:
  static constexpr int kMax = max_pixels(kVecs);

  int64_t rows_at_once() const { return 2 * t_.pixels <= kMax ? 2 : 1; }
  int64_t bands() const { return (t_.rows + rows_at_once() - 1) / rows_at_once(); }
  int64_t tiles() const { return (t_.pixels + kMax - 1) / kMax; }

  // Tiles of nearly equal width: 49 pixels are 13 + 12 + 12 + 12, not 14 + 14 + 14 + 7.
  void run_row(const float* input, const float* residual, float* output) {
    const int64_t width = t_.pixels / tiles();
    const int64_t wider = t_.pixels % tiles();
    for (int64_t i = 0; i < tiles(); ++i) {
      const int64_t pixels = width + (i < wider ? 1 : 0);
      run_tile<1>(pixels, input, residual, output);
      input += pixels * t_.input_pixel_stride;
      if (residual != nullptr) residual += pixels * t_.residual_pixel_stride;
      output += pixels * t_.output_pixel_stride;
    }
  }

  template <int kRows>
  void run_tile(int64_t pixels, const float* input, const float* residual, float* output) {
    const auto widths = std::make_integer_sequence<int, kMax / kRows>{};
    tile_of<kRows, kVecs>(pixels, widths)(t_, input, residual, output, fetching_.next());
  }

  const ConvTile& t_;
  TileFetching fetching_;
};

}  // namespace

const int64_t kIgemmPanelChannels = kMaxVecs * kLanes;
const int64_t kIgemmWidePanelChannels = kWideVecs * kLanes;
const int64_t kIgemmWidePanelPixels = kWidePixels;

void igemm(const ConvTile& t) {
  if (t.out_channels <= kLanes) {
    Tiles<1>(t).run();
  } else if (t.out_channels <= kMaxVecs * kLanes) {
    Tiles<kMaxVecs>(t).run();
  } else {
    Tiles<kWideVecs>(t).run();
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

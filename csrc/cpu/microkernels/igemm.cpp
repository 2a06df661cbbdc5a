// Implicit-GEMM convolution: register tiles of output pixels x output channels over the rows of a
// band. The output is written once, with shift, residual and activation applied.

#include <algorithm>
#include <utility>

#include "register_tile.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

// One running sum over thousands of products loses digits that many short ones keep: after this
// many products the registers are added to a total in memory. At 256 the rounding error of a
// 512-channel 3x3 is a quarter of a single sum's, for 1 % of the time.
constexpr int64_t kProductsPerSum = 256;
// A tap, or a row of taps, of at least so many products is a sum of its own: of 4x1 taps of 64
// channels the error is 1.3 times that of eager's NCHW, and was 2.4 times.
constexpr int64_t kProductsAlone = 64;

// Whether a sum takes whole rows of taps, and how many.
bool sums_rows(const ConvTile& t) {
  return t.tap_cols * t.channels <= kProductsPerSum && t.channels < kProductsAlone;
}
int64_t rows_per_sum(const ConvTile& t) {
  const int64_t products = t.tap_cols * t.channels;
  return products < kProductsAlone ? kProductsPerSum / products : 1;
}

// Whether all of a tile's products are one sum.
bool one_sum(const ConvTile& t) {
  if (sums_rows(t)) return t.tap_rows <= rows_per_sum(t);
  return t.tap_rows * t.tap_cols == 1 && t.channels <= kProductsPerSum;
}

// Adds one sum to the total, or begins it. Not inlined: the compiler would give registers to the
// total and spill the sum's.
template <int kRows, int kPixels, int kVecs>
[[gnu::noinline]] void add_sum(const ConvTile& t, int64_t rows, int64_t cols, int64_t channels,
                               Cursor& at, TileSums<kRows, kPixels, kVecs>& total) {
  const bool first = at.weights == t.weights;
  TileSums<kRows, kPixels, kVecs> sums = {};
  add_taps(t, rows, cols, channels, at, sums);
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kPixels; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < kVecs; ++j) {
      total.at[i][j] = first ? sums.at[i][j] : total.at[i][j] + sums.at[i][j];
    }
  }
}

template <int kRows, int kPixels, int kVecs>
void add_sums(const ConvTile& t, const float* input, Prefetch prefetch,
              TileSums<kRows, kPixels, kVecs>& total) {
  Cursor at{input, t.weights, prefetch};
  if (sums_rows(t)) {
    const int64_t rows = rows_per_sum(t);
    for (int64_t r = 0; r < t.tap_rows; r += rows) {
      at.input = input + r * t.tap_row_stride;
      add_sum(t, std::min(rows, t.tap_rows - r), t.tap_cols, t.channels, at, total);
    }
    return;
  }
  for (int64_t r = 0; r < t.tap_rows; ++r) {
    for (int64_t s = 0; s < t.tap_cols; ++s) {
      const float* tap = input + r * t.tap_row_stride + s * t.tap_col_stride;
      for (int64_t c = 0; c < t.channels; c += kProductsPerSum) {
        at.input = tap + c;
        add_sum(t, 1, 1, std::min(kProductsPerSum, t.channels - c), at, total);
      }
    }
  }
}

// Spreads what is to be fetched over all tiles of a call.
class TileFetching {
 public:
  TileFetching(const ConvTile& t, int64_t tiles) : t_(t) {
    int64_t floats = 0;
    for (const FloatSpan& span : t.upcoming.spans) floats += span.count;
    if (floats == 0) return;
    const int64_t steps = t.tap_rows * t.tap_cols * fetches(t.channels);
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

// Where the next tile of a row is.
struct Place {
  const float* input;
  const float* residual;  // or null
  float* output;
};

// A tile whose products are one sum, which is finished where it is. Not inlined, for the registers.
template <int kRows, int kPixels, int kVecs>
[[gnu::noinline]] void sum_tile(const ConvTile& t, const Place& place, Prefetch prefetch) {
  TileSums<kRows, kPixels, kVecs> sums = {};
  Cursor at{place.input, t.weights, prefetch};
  add_taps(t, t.tap_rows, t.tap_cols, t.channels, at, sums);
  finish(t, t.shift, place.residual, place.output, sums);
}

// `count` tiles of a row, of the same width.
template <int kRows, int kPixels, int kVecs>
void tiles(const ConvTile& t, Place& place, int64_t count, TileFetching& fetching) {
  const bool whole = t.out_channels == kVecs * kLanes;
  const bool summed_at_once = whole && one_sum(t);
  for (; count > 0; --count) {
    if (place.residual != nullptr) {
      fetch_lines<kRows, kPixels, kVecs>(place.residual, t.residual_row_stride,
                                         t.residual_pixel_stride);
    }
    fetch_lines<kRows, kPixels, kVecs>(place.output, t.output_row_stride, t.output_pixel_stride);
    if (summed_at_once) {
      sum_tile<kRows, kPixels, kVecs>(t, place, fetching.next());
    } else {
      TileSums<kRows, kPixels, kVecs> total;
      add_sums(t, place.input, fetching.next(), total);
      if (whole) {
        finish(t, t.shift, place.residual, place.output, total);
      } else {
        finish_partial(t, t.out_channels, t.shift, place.residual, place.output, total);
      }
    }
    place.input += kPixels * t.input_pixel_stride;
    if (place.residual != nullptr) place.residual += kPixels * t.residual_pixel_stride;
    place.output += kPixels * t.output_pixel_stride;
  }
}

using TilesFunction = void (*)(const ConvTile&, Place&, int64_t, TileFetching&);

template <int kRows, int kVecs, int... kPixelsMinusOne>
TilesFunction tiles_of(int64_t pixels, std::integer_sequence<int, kPixelsMinusOne...>) {
  static constexpr TilesFunction kFunctions[] = {tiles<kRows, kPixelsMinusOne + 1, kVecs>...};
  return kFunctions[pixels - 1];
}

// The tiles of a band.
template <int kVecs>
class Band {
 public:
  explicit Band(const ConvTile& t) : t_(t), fetching_(t, bands() * tiles()) {}

  void run() {
    for (int64_t row = 0; row < t_.rows; row += rows_at_once()) {
      Place place{t_.input + row * t_.input_row_stride, t_.residual,
                  t_.output + row * t_.output_row_stride};
      if (place.residual != nullptr) place.residual += row * t_.residual_row_stride;
      if (row + 1 < t_.rows && rows_at_once() == 2) {
        run_tiles<2>(t_.pixels, 1, place);
      } else {
        run_row(place);
      }
    }
  }

 private:
  static constexpr int kMax = max_pixels(kVecs);

  int64_t rows_at_once() const { return 2 * t_.pixels <= kMax ? 2 : 1; }
  int64_t bands() const { return (t_.rows + rows_at_once() - 1) / rows_at_once(); }
  int64_t tiles() const { return (t_.pixels + kMax - 1) / kMax; }

  // Tiles of nearly equal width: 49 pixels are 13 + 12 + 12 + 12, not 14 + 14 + 14 + 7.
  void run_row(Place& place) {
    const int64_t width = t_.pixels / tiles();
    const int64_t wider = t_.pixels % tiles();
    if (wider > 0) run_tiles<1>(width + 1, wider, place);
    run_tiles<1>(width, tiles() - wider, place);
  }

  template <int kRows>
  void run_tiles(int64_t pixels, int64_t count, Place& place) {
    const auto widths = std::make_integer_sequence<int, kMax / kRows>{};
    tiles_of<kRows, kVecs>(pixels, widths)(t_, place, count, fetching_);
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
    Band<1>(t).run();
  } else if (t.out_channels <= kMaxVecs * kLanes) {
    Band<kMaxVecs>(t).run();
  } else {
    Band<kWideVecs>(t).run();
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

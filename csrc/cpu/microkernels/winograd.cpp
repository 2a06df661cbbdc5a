// The transforms of Winograd's F(2x2, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2015): additions only. The multiplications between them are sixteen matrix
// products, which igemm.cpp does.

#include <algorithm>

#include "activation.h"
#include "kernels.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kTile = 4;  // inputs of a tile along one axis
constexpr int kStep = 2;  // outputs

// B^T d along one axis, for four vectors.
inline void transform_input(const Vec d[kTile], Vec out[kTile]) {
  out[0] = d[0] - d[2];
  out[1] = d[1] + d[2];
  out[2] = d[2] - d[1];
  out[3] = d[1] - d[3];
}

// A^T m along one axis.
inline void transform_output(const Vec m[kTile], Vec out[kStep]) {
  out[0] = m[0] + m[1] + m[2];
  out[1] = m[1] - m[2] - m[3];
}

// Where a tile's 4x4 input values are, and how many of its rows and columns exist.
struct Patch {
  const float* at;
  ptrdiff_t row_stride;
  ptrdiff_t pixel_stride;
  int64_t rows;
  int64_t cols;
};

template <bool kWhole>
inline Vec load_input(const Patch& patch, int row, int col, int64_t channel, int64_t count) {
  const float* p = patch.at + row * patch.row_stride + col * patch.pixel_stride + channel;
  if constexpr (kWhole) return load(p);
  if (row >= patch.rows || col >= patch.cols) return Vec{};
  return load_partial(p, count);
}

template <bool kWhole>
inline void transform_patch(const Patch& patch, int64_t channel, int64_t count, float* out,
                            ptrdiff_t position_stride) {
  Vec rows[kTile][kTile];  // [column][transformed row]
#pragma GCC unroll 4
  for (int col = 0; col < kTile; ++col) {
    Vec d[kTile];
#pragma GCC unroll 4
    for (int row = 0; row < kTile; ++row)
      d[row] = load_input<kWhole>(patch, row, col, channel, count);
    transform_input(d, rows[col]);
  }
#pragma GCC unroll 4
  for (int row = 0; row < kTile; ++row) {
    const Vec d[kTile] = {rows[0][row], rows[1][row], rows[2][row], rows[3][row]};
    Vec v[kTile];
    transform_input(d, v);
#pragma GCC unroll 4
    for (int col = 0; col < kTile; ++col) {
      float* p = out + (row * kTile + col) * position_stride + channel;
      if constexpr (kWhole) {
        store(p, v[col]);
      } else {
        store_partial(p, v[col], count);
      }
    }
  }
}

// The 2x2 outputs of one tile for one vector of channels.
inline void load_outputs(const float* products, ptrdiff_t position_stride, int64_t count,
                         Vec out[kStep][kStep]) {
  Vec rows[kTile][kStep];  // [column][output row]
#pragma GCC unroll 4
  for (int col = 0; col < kTile; ++col) {
    Vec m[kTile];
#pragma GCC unroll 4
    for (int row = 0; row < kTile; ++row) {
      const float* p = products + (row * kTile + col) * position_stride;
      m[row] = count == kLanes ? load(p) : load_partial(p, count);
    }
    transform_output(m, rows[col]);
  }
#pragma GCC unroll 2
  for (int row = 0; row < kStep; ++row) {
    const Vec m[kTile] = {rows[0][row], rows[1][row], rows[2][row], rows[3][row]};
    transform_output(m, out[row]);
  }
}

inline void finish_output(const ConvTile& t, Vec v, int64_t row, int64_t pixel, int64_t channel,
                          int64_t count) {
  const bool full = count == kLanes;
  v += full ? load(t.shift + channel) : load_partial(t.shift + channel, count);
  if (t.residual != nullptr) {
    const float* p =
        t.residual + row * t.residual_row_stride + pixel * t.residual_pixel_stride + channel;
    v += full ? load(p) : load_partial(p, count);
  }
  v = activate(v, t.act, t.act_slope);
  float* p = t.output + row * t.output_row_stride + pixel * t.output_pixel_stride + channel;
  if (full) {
    store(p, v);
  } else {
    store_partial(p, v, count);
  }
}

}  // namespace

void winograd_input(const WinogradTiles& tiles, const float* input, ptrdiff_t row_stride,
                    ptrdiff_t pixel_stride, int64_t rows, int64_t pixels) {
  float* out = tiles.transformed;
  for (int64_t r = 0; r < tiles.tile_rows; ++r) {
    for (int64_t c = 0; c < tiles.tile_cols; ++c, out += tiles.tile_stride) {
      const Patch patch{input + kStep * (r * row_stride + c * pixel_stride), row_stride,
                        pixel_stride, rows - kStep * r, pixels - kStep * c};
      const bool whole = patch.rows >= kTile && patch.cols >= kTile;
      for (int64_t channel = 0; channel < tiles.channels; channel += kLanes) {
        const int64_t count = std::min<int64_t>(kLanes, tiles.channels - channel);
        if (whole && count == kLanes) {
          transform_patch<true>(patch, channel, count, out, tiles.position_stride);
        } else {
          transform_patch<false>(patch, channel, count, out, tiles.position_stride);
        }
      }
    }
  }
}

void winograd_output(const WinogradTiles& tiles, const ConvTile& output) {
  const float* products = tiles.transformed;
  for (int64_t r = 0; r < tiles.tile_rows; ++r) {
    for (int64_t c = 0; c < tiles.tile_cols; ++c, products += tiles.tile_stride) {
      const int64_t rows = std::min<int64_t>(kStep, output.rows - kStep * r);
      const int64_t cols = std::min<int64_t>(kStep, output.pixels - kStep * c);
      for (int64_t channel = 0; channel < tiles.channels; channel += kLanes) {
        const int64_t count = std::min<int64_t>(kLanes, tiles.channels - channel);
        Vec y[kStep][kStep];
        load_outputs(products + channel, tiles.position_stride, count, y);
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < cols; ++j) {
            finish_output(output, y[i][j], kStep * r + i, kStep * c + j, channel, count);
          }
        }
      }
    }
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

// The transforms of a weight's gradient by Winograd's F(2x2, 3x3): those of winograd.cpp,
// transposed. y = A^T ((G g G^T) * (B^T d B)) A makes dg = G^T ((A dy A^T) * (B^T d B)) G, summed
// over tiles.

#include <algorithm>

#include "training.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kTile = 4;
constexpr int kStep = 2;
constexpr int kTaps = 3;
constexpr int kBlock = 16;

// A dy along one axis.
inline void transform_gradient(const Vec dy[kStep], Vec out[kTile]) {
  out[0] = dy[0];
  out[1] = dy[0] + dy[1];
  out[2] = dy[0] - dy[1];
  out[3] = -dy[1];
}

// G^T m along one axis.
inline void transform_sums(const Vec m[kTile], Vec out[kTaps]) {
  const Vec even = (m[1] + m[2]) * 0.5F;
  out[0] = m[0] + even;
  out[1] = (m[1] - m[2]) * 0.5F;
  out[2] = even + m[3];
}

// The 2x2 gradients at `at`, of which rows x cols exist, for one vector of channels.
inline void transform_patch(const GradientPixels& g, const float* at, int64_t rows, int64_t cols,
                            int64_t count, float* out, ptrdiff_t position_stride) {
  const bool full = count == kLanes;
  Vec columns[kStep][kTile];
#pragma GCC unroll 2
  for (int col = 0; col < kStep; ++col) {
    Vec dy[kStep] = {};
#pragma GCC unroll 2
    for (int row = 0; row < kStep; ++row) {
      const float* p = at + row * g.row_stride + col * g.pixel_stride;
      if (row < rows && col < cols) dy[row] = full ? load(p) : load_partial(p, count);
    }
    transform_gradient(dy, columns[col]);
  }
#pragma GCC unroll 4
  for (int row = 0; row < kTile; ++row) {
    const Vec dy[kStep] = {columns[0][row], columns[1][row]};
    Vec v[kTile];
    transform_gradient(dy, v);
#pragma GCC unroll 4
    for (int col = 0; col < kTile; ++col) {
      float* p = out + (row * kTile + col) * position_stride;
      if (full) {
        store(p, v[col]);
      } else {
        store_partial(p, v[col], count);
      }
    }
  }
}

}  // namespace

void winograd_gradient(const WinogradTiles& tiles, const GradientPixels& g) {
  float* out = tiles.transformed;
  for (int64_t r = 0; r < tiles.tile_rows; ++r) {
    for (int64_t c = 0; c < tiles.tile_cols; ++c, out += tiles.tile_stride) {
      const float* at = g.data + kStep * (r * g.row_stride + c * g.pixel_stride);
      for (int64_t channel = 0; channel < tiles.channels; channel += kLanes) {
        transform_patch(g, at + channel, g.rows - kStep * r, g.pixels - kStep * c,
                        std::min<int64_t>(kLanes, tiles.channels - channel), out + channel,
                        tiles.position_stride);
      }
    }
  }
}

void winograd_taps(const float* sums, ptrdiff_t position_stride, int64_t channels, float* taps) {
  for (int64_t i = 0; i < channels * kBlock; i += kLanes) {
    Vec columns[kTile][kTaps];
#pragma GCC unroll 4
    for (int col = 0; col < kTile; ++col) {
      Vec m[kTile];
#pragma GCC unroll 4
      for (int row = 0; row < kTile; ++row) {
        m[row] = load(sums + (row * kTile + col) * position_stride + i);
      }
      transform_sums(m, columns[col]);
    }
#pragma GCC unroll 3
    for (int row = 0; row < kTaps; ++row) {
      const Vec m[kTile] = {columns[0][row], columns[1][row], columns[2][row], columns[3][row]};
      Vec g[kTaps];
      transform_sums(m, g);
#pragma GCC unroll 3
      for (int col = 0; col < kTaps; ++col) {
        store(taps + (row * kTaps + col) * channels * kBlock + i, g[col]);
      }
    }
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

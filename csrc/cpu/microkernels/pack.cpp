// Packs the weights of sixteen output channels: a transpose, so that the channels lie side by side.
// Runs at every forward of an accelerated model, hence in registers.

#include <algorithm>

#include "kernels.h"
#include "transpose.h"
#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kBlock = 16;  // output channels
constexpr int kWinogradTaps = 9;
constexpr int kWinogradSide = 4;
// Input channels that are transposed at a time, in the level-1 cache.
constexpr int64_t kChunkChannels = 16;
constexpr int64_t kPieceRows = kChunkChannels * kWinogradTaps;

// The same for a block with fewer channels, and for the last columns.
void transpose_values_slowly(const PackSource& s, int64_t first, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      out[i * kBlock + lane] =
          lane < s.lanes ? s.weight[lane * s.lane_stride + first + i] * s.scale[lane] : 0.0F;
    }
  }
}

// `count` adjacent values of each channel, scaled, to [count][16]. Sixteen rows far apart, each as
// short as a page, are more than the processor foresees: the next block's are fetched meanwhile.
void transpose_values(const PackSource& s, int64_t first, int64_t count, float* out) {
  const int64_t whole = s.lanes == kBlock ? count / kQuad * kQuad : 0;
  for (int lane = 0; lane < kBlock; lane += kLanes) {
    const Vec scale = load(s.scale + lane);
    const float* rows = s.weight + lane * s.lane_stride + first;
    for (int64_t i = 0; i < whole; i += kQuad) {
      Vec columns[kQuad];
      transpose(rows + i, s.lane_stride, columns);
#pragma GCC unroll 4
      for (int c = 0; c < kQuad; ++c) {
        store(out + (i + c) * kBlock + lane, columns[c] * scale);
      }
      prefetch_rows(rows + i + kBlock * s.lane_stride, s.lane_stride, i);
    }
  }
  transpose_values_slowly(s, first + whole, count - whole, out + whole * kBlock);
}

// Sums of a few float32 values are exact in double: the transform rounds once, at its end.
typedef double DoubleVec __attribute__((vector_size(kLanes * sizeof(double))));

inline void widen(const float* p, DoubleVec& out) {
  out = __builtin_convertvector(load(p), DoubleVec);
}

// G g of F(2, 3) along one axis.
inline void transform_axis(const DoubleVec g[3], DoubleVec out[kWinogradSide]) {
  const DoubleVec even = (g[0] + g[2]) * 0.5;
  const DoubleVec odd = g[1] * 0.5;
  out[0] = g[0];
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = g[2];
}

// One input channel: nine vectors of unscaled taps, `tap_stride` floats apart, to sixteen.
inline void transform_kernel(const float* taps, ptrdiff_t tap_stride, const float* scale,
                             float* out, ptrdiff_t position_stride) {
  DoubleVec factor;
  widen(scale, factor);
  DoubleVec columns[3][kWinogradSide];
#pragma GCC unroll 3
  for (int col = 0; col < 3; ++col) {
    DoubleVec g[3];
#pragma GCC unroll 3
    for (int row = 0; row < 3; ++row) {
      widen(taps + (row * 3 + col) * tap_stride, g[row]);
      g[row] *= factor;
    }
    transform_axis(g, columns[col]);
  }
#pragma GCC unroll 4
  for (int row = 0; row < kWinogradSide; ++row) {
    const DoubleVec g[3] = {columns[0][row], columns[1][row], columns[2][row]};
    DoubleVec u[kWinogradSide];
    transform_axis(g, u);
#pragma GCC unroll 4
    for (int col = 0; col < kWinogradSide; ++col) {
      store(out + (row * kWinogradSide + col) * position_stride,
            __builtin_convertvector(u[col], Vec));
    }
  }
}

}  // namespace

void pack_direct(const PackSource& s, float* block) {
  if (s.taps == 1 || s.taps_outside) {
    return transpose_values(s, 0, s.taps * s.channels, block);
  }
  // Rows of sixteen output channels go from [C][taps] to [taps][C], by way of the level-1 cache.
  alignas(64) float piece[kPieceRows * kBlock];
  const int64_t count = s.channels * s.taps;
  const int64_t tap_channels = s.tap_channels > 0 ? s.tap_channels : s.channels;
  int64_t c = 0;
  int64_t tap = 0;
  for (int64_t i = 0; i < count; i += kPieceRows) {
    const int64_t rows = std::min(kPieceRows, count - i);
    transpose_values(s, i, rows, piece);
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(block + (tap * tap_channels + c) * kBlock, piece + row * kBlock,
                  kBlock * sizeof(float));
      if (++tap == s.taps) {
        tap = 0;
        ++c;
      }
    }
  }
}

void pack_winograd(const PackSource& source, float* block, ptrdiff_t position_stride) {
  alignas(64) float piece[kPieceRows * kBlock];
  const float ones[kBlock] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  PackSource s = source;  // the scale is applied with the transform
  s.scale = ones;
  for (int64_t c = 0; c < s.channels; c += kChunkChannels) {
    const int64_t channels = std::min(kChunkChannels, s.channels - c);
    if (s.taps_outside) {
      for (int64_t tap = 0; tap < kWinogradTaps; ++tap) {
        transpose_values(s, tap * s.channels + c, channels, piece + tap * channels * kBlock);
      }
    } else {
      transpose_values(s, c * kWinogradTaps, channels * kWinogradTaps, piece);
    }
    const ptrdiff_t tap_stride = s.taps_outside ? channels * kBlock : kBlock;
    const ptrdiff_t channel_stride = s.taps_outside ? kBlock : kWinogradTaps * kBlock;
    for (int64_t i = 0; i < channels; ++i) {
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        transform_kernel(piece + i * channel_stride + lane, tap_stride, source.scale + lane,
                         block + (c + i) * kBlock + lane, position_stride);
      }
    }
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

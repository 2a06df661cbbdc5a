// Packs the weights of sixteen output channels: a transpose, so that the channels lie side by side.
// Runs at every forward of an accelerated model, hence in registers.

#include <algorithm>

#include "kernels.h"
#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kBlock = 16;  // output channels
constexpr int kWinogradTaps = 9;
constexpr int kWinogradSide = 4;
// Input channels that are transposed at a time, in the level-1 cache.
constexpr int64_t kChunkChannels = 16;
constexpr int64_t kPieceRows = kChunkChannels * kWinogradTaps;

// Exchanges the lanes of a and b so that each keeps one `step`-sized half of the other's pairs.
template <int kStep>
inline void exchange(Vec& a, Vec& b) {
#if defined(__clang__)
  const Vec x = a, y = b;
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool upper = (lane & kStep) != 0;
    a[lane] = upper ? y[lane - kStep] : x[lane];
    b[lane] = upper ? y[lane] : x[lane + kStep];
  }
#else
  IntVec low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool upper = (lane & kStep) != 0;
    low[lane] = upper ? kLanes + lane - kStep : lane;
    high[lane] = upper ? kLanes + lane : lane + kStep;
  }
  const Vec x = a;
  a = __builtin_shuffle(x, b, low);
  b = __builtin_shuffle(x, b, high);
#endif
}

template <int kStep>
inline void exchange_all(Vec* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kStep) == 0) exchange<kStep>(rows[i], rows[i + kStep]);
  }
}

inline void transpose(Vec* rows) {
  if constexpr (kLanes > 8) exchange_all<8>(rows);
  if constexpr (kLanes > 4) exchange_all<4>(rows);
  exchange_all<2>(rows);
  exchange_all<1>(rows);
}

// `count` adjacent values of each channel, scaled, to [count][16].
void transpose_values(const PackSource& s, int64_t first, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t columns = std::min<int64_t>(kLanes, count - i);
    for (int lane = 0; lane < kBlock; lane += kLanes) {
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) {
        const float* p = s.weight + (lane + l) * s.lane_stride + first + i;
        if (lane + l >= s.lanes) {
          rows[l] = Vec{};
        } else {
          rows[l] = (columns == kLanes ? load(p) : load_partial(p, columns)) * s.scale[lane + l];
        }
      }
      transpose(rows);
      for (int64_t c = 0; c < columns; ++c) store(out + (i + c) * kBlock + lane, rows[c]);
    }
  }
}

typedef double DoubleVec __attribute__((vector_size(kLanes * sizeof(double))));

// G g of F(2, 3) along one axis.
inline void transform_axis(const DoubleVec g[3], DoubleVec out[kWinogradSide]) {
  const DoubleVec even = (g[0] + g[2]) / 2.0;
  const DoubleVec odd = g[1] / 2.0;
  out[0] = g[0];
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = g[2];
}

// One input channel: nine vectors of unscaled taps to sixteen.
inline void transform_kernel(const float* taps, const float* scale, float* out,
                             ptrdiff_t position_stride) {
  const DoubleVec factor = __builtin_convertvector(load(scale), DoubleVec);
  DoubleVec columns[3][kWinogradSide];
#pragma GCC unroll 3
  for (int col = 0; col < 3; ++col) {
    DoubleVec g[3];
#pragma GCC unroll 3
    for (int row = 0; row < 3; ++row) {
      g[row] = __builtin_convertvector(load(taps + (row * 3 + col) * kBlock), DoubleVec) * factor;
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
  if (s.taps == 1) return transpose_values(s, 0, s.channels, block);
  // Rows of sixteen output channels go from [C][taps] to [taps][C], by way of the level-1 cache.
  alignas(64) float piece[kPieceRows * kBlock];
  const int64_t count = s.channels * s.taps;
  int64_t c = 0;
  int64_t tap = 0;
  for (int64_t i = 0; i < count; i += kPieceRows) {
    const int64_t rows = std::min(kPieceRows, count - i);
    transpose_values(s, i, rows, piece);
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(block + (tap * s.channels + c) * kBlock, piece + row * kBlock,
                  kBlock * sizeof(float));
      if (++tap == s.taps) {
        tap = 0;
        ++c;
      }
    }
  }
}

void pack_winograd(const PackSource& s, float* block, ptrdiff_t position_stride) {
  alignas(64) float piece[kPieceRows * kBlock];
  const float ones[kBlock] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  PackSource unscaled = s;  // the scale is applied in double precision, with the transform
  unscaled.scale = ones;
  for (int64_t c = 0; c < s.channels; c += kChunkChannels) {
    const int64_t channels = std::min(kChunkChannels, s.channels - c);
    transpose_values(unscaled, c * kWinogradTaps, channels * kWinogradTaps, piece);
    for (int64_t i = 0; i < channels; ++i) {
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        transform_kernel(piece + i * kWinogradTaps * kBlock + lane, s.scale + lane,
                         block + (c + i) * kBlock + lane, position_stride);
      }
    }
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

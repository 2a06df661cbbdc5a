// Products of matrix rows with vectors, both read along the rows.

#include "kernels.h"
#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

// Enough independent sums to hide the latency of an addition.
constexpr int kRows = 8;

inline float sum_of_lanes(Vec v) {
  float sum = 0.0F;
  for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

template <int kCount>
void multiply(const DotTile& t, const float* rows, const float* vector, float* sums) {
  Vec acc[kCount] = {};
  int64_t i = 0;
  for (; i + kLanes <= t.length; i += kLanes) {
    const Vec x = load(vector + i);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) acc[r] += x * load(rows + r * t.row_stride + i);
  }
  if (const int64_t left = t.length - i; left > 0) {
    const Vec x = load_partial(vector + i, left);
    for (int r = 0; r < kCount; ++r) acc[r] += x * load_partial(rows + r * t.row_stride + i, left);
  }
  for (int r = 0; r < kCount; ++r) sums[r * t.sums_stride] += sum_of_lanes(acc[r]);
}

}  // namespace

void dot(const DotTile& t) {
  for (int64_t v = 0; v < t.vectors; ++v) {
    const float* vector = t.vector + v * t.vector_stride;
    int64_t row = 0;
    for (; row + kRows <= t.rows; row += kRows) {
      multiply<kRows>(t, t.row + row * t.row_stride, vector, t.sums + row * t.sums_stride + v);
    }
    for (; row < t.rows; ++row) {
      multiply<1>(t, t.row + row * t.row_stride, vector, t.sums + row * t.sums_stride + v);
    }
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

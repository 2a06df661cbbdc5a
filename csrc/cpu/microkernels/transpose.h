// Sixteen rows of 32-bit values to columns.

#pragma once

#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

constexpr int kQuad = 4;  // lanes that the cheap shuffles stay within

typedef float Quad __attribute__((vector_size(kQuad * sizeof(float))));
typedef float UnalignedQuad
    __attribute__((vector_size(kQuad * sizeof(float)), aligned(sizeof(float)), may_alias));

#if defined(__clang__)
inline Vec shuffle(Vec a, Vec b, IntVec index) {
  Vec out;
  for (int lane = 0; lane < kLanes; ++lane) {
    out[lane] = index[lane] < kLanes ? a[index[lane]] : b[index[lane] - kLanes];
  }
  return out;
}
#else
inline Vec shuffle(Vec a, Vec b, IntVec index) { return __builtin_shuffle(a, b, index); }
#endif

inline Quad load_quad(const float* p) { return *reinterpret_cast<const UnalignedQuad*>(p); }

// Of each quad of a and b: a0 b0 a1 b1, or a2 b2 a3 b3.
template <bool kUpper>
inline Vec interleave(Vec a, Vec b) {
  IntVec index;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int from = lane / kQuad * kQuad + (kUpper ? 2 : 0) + lane % kQuad / 2;
    index[lane] = lane % 2 == 0 ? from : kLanes + from;
  }
  return shuffle(a, b, index);
}

// Of each quad of a and b: a0 a1 b0 b1, or a2 a3 b2 b3.
template <bool kUpper>
inline Vec join_halves(Vec a, Vec b) {
  IntVec index;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int from = lane / kQuad * kQuad + (kUpper ? 2 : 0) + lane % 2;
    index[lane] = lane % kQuad < 2 ? from : kLanes + from;
  }
  return shuffle(a, b, index);
}

// Fetches a cache line of each row, once per line.
inline void prefetch_rows(const float* rows, ptrdiff_t row_stride, int64_t i) {
  constexpr int64_t kLine = 16;
  if (i % kLine != 0) return;
#pragma GCC unroll 16
  for (int l = 0; l < kLanes; ++l) __builtin_prefetch(rows + l * row_stride, 0, 2);
}

// Four adjacent values of every fourth row: of row 4*q at p to quad q. The insertions are loads,
// which leaves half of a transpose's shuffles; none needs the one port that shuffles whole vectors.
inline Vec load_row_quads(const float* p, [[maybe_unused]] ptrdiff_t row_stride) {
#if defined(__AVX512F__)
  Vec rows = _mm512_castps128_ps512(load_quad(p));
  rows = _mm512_insertf32x4(rows, load_quad(p + kQuad * row_stride), 1);
  rows = _mm512_insertf32x4(rows, load_quad(p + 2 * kQuad * row_stride), 2);
  return _mm512_insertf32x4(rows, load_quad(p + 3 * kQuad * row_stride), 3);
#elif defined(__AVX2__)
  return __builtin_shufflevector(load_quad(p), load_quad(p + kQuad * row_stride), 0, 1, 2, 3, 4, 5,
                                 6, 7);
#else
  return load_quad(p);
#endif
}

// kLanes rows by four columns at p, to four vectors of rows.
inline void transpose(const float* p, ptrdiff_t row_stride, Vec* columns) {
  Vec rows[kQuad];
#pragma GCC unroll 4
  for (int i = 0; i < kQuad; ++i) rows[i] = load_row_quads(p + i * row_stride, row_stride);
  const Vec low01 = interleave<false>(rows[0], rows[1]);
  const Vec low23 = interleave<false>(rows[2], rows[3]);
  const Vec high01 = interleave<true>(rows[0], rows[1]);
  const Vec high23 = interleave<true>(rows[2], rows[3]);
  columns[0] = join_halves<false>(low01, low23);
  columns[1] = join_halves<true>(low01, low23);
  columns[2] = join_halves<false>(high01, high23);
  columns[3] = join_halves<true>(high01, high23);
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

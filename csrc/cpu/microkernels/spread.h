// Shuffles within a vector that several groups of channels share.

#pragma once

#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

// Lane i of the result is lane from(i) of x, a constant.
template <class From>
inline Vec shuffle_lanes(Vec x, const From& from) {
#if defined(__clang__)
  // Clang has no shuffle by a variable, and makes one of this loop.
  Vec result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = x[from(lane)];
  return result;
#else
  IntVec index;
  for (int lane = 0; lane < kLanes; ++lane) index[lane] = from(lane);
  return __builtin_shuffle(x, index);
#endif
}

// Lane c of every kGroup adjacent lanes, over all of them.
template <int kGroup>
inline Vec spread(Vec x, int c) {
  return shuffle_lanes(x, [c](int lane) { return lane / kGroup * kGroup + c; });
}

// The first or second lane of every pair, in both. Of memory these instructions are loads alone;
// the compiler would take a shuffle, for which multiplications wait.
template <bool kSecond>
inline Vec duplicate(Vec x) {
#if defined(__AVX512F__)
  return kSecond ? _mm512_movehdup_ps(x) : _mm512_moveldup_ps(x);
#elif defined(__AVX2__)
  return kSecond ? _mm256_movehdup_ps(x) : _mm256_moveldup_ps(x);
#else
  return spread<2>(x, kSecond ? 1 : 0);
#endif
}

// Lanes that are kDistance, a power of two, apart change places.
template <int kDistance>
inline Vec exchange(Vec x) {
  return shuffle_lanes(x, [](int lane) { return lane ^ kDistance; });
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

// The shuffle that narrow groups share a vector by.

#pragma once

#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

// Lane c of every kGroup adjacent lanes, over all of them.
template <int kGroup>
inline Vec spread(Vec x, int c) {
#if defined(__clang__)
  // Clang has no shuffle by a variable, and makes one of this loop.
  Vec spread;
  for (int lane = 0; lane < kLanes; ++lane) spread[lane] = x[lane / kGroup * kGroup + c];
  return spread;
#else
  IntVec index;
  for (int lane = 0; lane < kLanes; ++lane) index[lane] = lane / kGroup * kGroup + c;
  return __builtin_shuffle(x, index);
#endif
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

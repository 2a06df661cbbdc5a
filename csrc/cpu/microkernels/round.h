// Float32 values rounded to bfloat16.

#pragma once

#include "vec.h"

#if defined(__AVX512BW__)

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

// Rounded to nearest, ties to even, a's before b's. Processors with tiles have the instruction; as
// assembly, so that nothing else is compiled for it.
inline __m512i round_both(__m512 a, __m512 b) {
  __m512i both;
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(b), "v"(a));
  return both;
}

inline __m256i round_one(Vec values) {
  __m256i bits;
  asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(values));
  return bits;
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

#endif

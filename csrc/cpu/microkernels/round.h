// Float32 values rounded to bfloat16, and back.

#pragma once

#include "../split.h"
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

// The first `count` of sixteen lanes.
inline __mmask16 lanes_mask(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

// The first `count` of sixteen values; the others are zero.
inline __m512 widen_some(const Bfloat16* values, int64_t count) {
  const __m256i bits = _mm256_maskz_loadu_epi16(lanes_mask(count), values);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline __m256i round_one(Vec values) {
  __m256i bits;
  asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(values));
  return bits;
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

#endif

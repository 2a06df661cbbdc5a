// The vector of the instruction set that this file is built for.
//
// The compiler's vector extension gives loads, arithmetic and shuffles; only what it spells badly
// (a maximum that keeps NaN) is an intrinsic.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef FASTRES_ISA_NAMESPACE
#error "FASTRES_ISA_NAMESPACE names the instruction set this file is built for"
#endif

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Steps of a register tile's loop between two branches. Where a core's other thread takes every
// second cycle of its front end, each instruction that multiplies nothing counts; AVX-512's tiles
// have more than twice the products a step.
constexpr int kUnrolled = kLanes == 8 ? 8 : 1;

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(float))));
typedef float UnalignedVec
    __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
// x - 0 is x for every x, -0 included, so the compiler drops the subtraction.
inline Vec broadcast(float x) { return x - Vec{}; }

// sum += x * y. With AVX2 spelled out: of the three forms of the instruction GCC takes those that
// overwrite a factor, too, and then copies the sums of an unrolled loop between registers.
inline void multiply_add(Vec& sum, Vec x, Vec y) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
#else
  sum += x * y;
#endif
}

// What is loaded by this pointer or distance stays behind what comes before: the compiler would
// move the loads of an unrolled loop's step ahead of the step before and spill its sums, or work
// out all addresses before the loop.
template <class T>
[[gnu::always_inline]] inline void keep_loads_behind(T& address) {
  asm volatile("" : "+r"(address));
}

inline Vec load_partial(const float* p, int64_t count) {
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(float));
  return load(lanes);
}
inline void store_partial(float* p, Vec v, int64_t count) {
  float lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(float));
}

// max(bound, v) and min(bound, v) that return v where v is NaN, as torch.relu does: x86's max
// returns its second operand when either is NaN. (Full masks: GCC 12 warns of the uninitialised
// operand inside its own unmasked _mm512_max_ps; the instruction is the same.)
inline Vec at_least(Vec v, Vec bound) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, bound, v);
#elif defined(__AVX2__)
  return _mm256_max_ps(bound, v);
#elif defined(__SSE2__)
  return _mm_max_ps(bound, v);
#else
  return v < bound ? bound : v;
#endif
}
inline Vec at_most(Vec v, Vec bound) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_ps(0xffff, bound, v);
#elif defined(__AVX2__)
  return _mm256_min_ps(bound, v);
#elif defined(__SSE2__)
  return _mm_min_ps(bound, v);
#else
  return v > bound ? bound : v;
#endif
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

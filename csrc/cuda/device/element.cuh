// The storage types, and what one 16-byte chunk of them is.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../params.h"

namespace fastres::cuda {

using f16 = __half;
using bf16 = __nv_bfloat16;

template <class E>
constexpr int kVec = kChunkBytes / static_cast<int>(sizeof(E));

__device__ inline float to_float(f16 v) { return __half2float(v); }
__device__ inline float to_float(bf16 v) { return __bfloat162float(v); }
__device__ inline float to_float(float v) { return v; }

template <class E>
__device__ inline E from_float(float v);
template <>
__device__ inline f16 from_float<f16>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ inline bf16 from_float<bf16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ inline float from_float<float>(float v) {
  return v;
}

__device__ inline float2 unpack(uint32_t word, f16) {
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}
__device__ inline float2 unpack(uint32_t word, bf16) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
__device__ inline uint32_t pack(float lo, float hi, f16) {
  const __half2 pair = __floats2half2_rn(lo, hi);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ inline uint32_t pack(float lo, float hi, bf16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <class E>
__device__ inline void unpack_chunk(const uint4& chunk, float (&values)[kVec<E>]) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(E) == 4) {
      values[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack(words[i], E{});
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

template <class E>
__device__ inline uint4 pack_chunk(const float (&values)[kVec<E>]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(E) == 4) {
      words[i] = __float_as_uint(values[i]);
    } else {
      words[i] = pack(values[2 * i], values[2 * i + 1], E{});
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// N floats of a per-channel vector, from a channel that is a multiple of 4.
template <int N>
__device__ inline void load_floats(const float* from, float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(from + i));
    values[i] = four.x;
    values[i + 1] = four.y;
    values[i + 2] = four.z;
    values[i + 3] = four.w;
  }
}

}  // namespace fastres::cuda

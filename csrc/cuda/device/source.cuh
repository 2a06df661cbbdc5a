// Loading a Source: the affine, the activation and the addend, while a chunk is in registers.

#pragma once

#include "activation.cuh"
#include "element.cuh"

namespace fastres::cuda {

__device__ inline float source_affine(const Source& s, float v, int channel) {
  if (s.mean == nullptr) return v;
  const float scale = s.scale == nullptr ? 0.0F : s.scale[channel] * s.scale_factor;
  const float bias = s.bias == nullptr ? 0.0F : s.bias[channel] * s.bias_factor;
  return (v - s.mean[channel]) * scale + bias;
}

// One element; what is loaded beside other elements or at an odd address goes here.
template <class E>
__device__ inline float source_element(const Source& s, int64_t index, int channel) {
  float v = to_float(static_cast<const E*>(s.x)[index]);
  v = apply_act(source_affine(s, v, channel), s.act, s.act_slope);
  if (s.addend != nullptr) {
    const float scale = s.addend_scale == nullptr ? 1.0F : s.addend_scale[channel];
    v += to_float(static_cast<const E*>(s.addend)[index]) * scale;
  }
  return v;
}

// The affine of one chunk of channels, for many pixels.
template <class E>
struct ChunkAffine {
  float mean[kVec<E>], scale[kVec<E>], bias[kVec<E>], addend_scale[kVec<E>];

  __device__ void load(const Source& s, int channel) {
    if (s.addend_scale != nullptr) load_floats(s.addend_scale + channel, addend_scale);
    if (s.mean == nullptr) return;
    load_floats(s.mean + channel, mean);
#pragma unroll
    for (int i = 0; i < kVec<E>; ++i) scale[i] = bias[i] = 0.0F;
    if (s.scale != nullptr) load_floats(s.scale + channel, scale);
    if (s.bias != nullptr) load_floats(s.bias + channel, bias);
#pragma unroll
    for (int i = 0; i < kVec<E>; ++i) {
      scale[i] *= s.scale_factor;
      bias[i] *= s.bias_factor;
    }
  }

  __device__ uint4 apply(const Source& s, const uint4& x, const uint4& addend) const {
    float v[kVec<E>];
    unpack_chunk<E>(x, v);
#pragma unroll
    for (int i = 0; i < kVec<E>; ++i) {
      if (s.mean != nullptr) v[i] = (v[i] - mean[i]) * scale[i] + bias[i];
      v[i] = apply_act(v[i], s.act, s.act_slope);
    }
    if (s.addend != nullptr) {
      float other[kVec<E>];
      unpack_chunk<E>(addend, other);
#pragma unroll
      for (int i = 0; i < kVec<E>; ++i) {
        v[i] += s.addend_scale != nullptr ? other[i] * addend_scale[i] : other[i];
      }
    }
    return pack_chunk<E>(v);
  }
};

__device__ inline uint4 load_chunk(const void* base, int64_t element, int element_bytes) {
  return __ldg(
      reinterpret_cast<const uint4*>(static_cast<const char*>(base) + element * element_bytes));
}

}  // namespace fastres::cuda

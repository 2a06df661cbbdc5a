// pack_weight: weights in rows of (tap, channel), in the types that the convolutions read.

#include "../device/element.cuh"
#include "../device/registry.cuh"

namespace fastres::cuda {

template <class E>
__device__ void pack_weight(const PackWeightParams& p) {
  const int taps = p.kernel_h * p.kernel_w;
  const int group_out = p.out_channels / p.groups;
  const int64_t rows = p.swap ? int64_t{p.group_in_channels} * p.groups : p.out_channels;
  const int width = p.swap ? group_out : p.group_in_channels;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < 8 && p.head != nullptr) {
    static_cast<int64_t*>(p.head)[i] = p.header[i];
    if (i < 2) static_cast<int64_t*>(p.tail)[i] = 0;
  }
  if (i >= rows * p.pitch) return;

  const int64_t row = i / p.pitch;
  const int at = static_cast<int>(i - row * p.pitch);
  float value = 0.0F;
  if (at < taps * width) {
    int tap = at / width;
    const int column = at - tap * width;
    if (p.flip) tap = taps - 1 - tap;
    const int64_t k = p.swap ? row / p.group_in_channels * group_out + column : row;
    const int64_t c = p.swap ? row % p.group_in_channels : column;
    const int r = tap / p.kernel_w, s = tap - r * p.kernel_w;
    value = to_float(static_cast<const E*>(
        p.weight)[k * p.stride_k + c * p.stride_c + r * p.stride_r + s * p.stride_s]);
    if (p.scale != nullptr) value *= p.scale[k];
  }
  if (p.out[0] != nullptr) static_cast<float*>(p.out[0])[i] = value;
  if (p.out[1] != nullptr) static_cast<bf16*>(p.out[1])[i] = from_float<bf16>(value);
  if (p.out[2] != nullptr) static_cast<f16*>(p.out[2])[i] = from_float<f16>(value);
}

// reduce_splits: the second stage of the weight gradients.
template <class E>
__device__ void reduce_splits(const ReduceSplitsParams& p) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= p.elements) return;
  float sum = 0.0F;
  for (int split = 0; split < p.splits; ++split) sum += p.partial[split * p.elements + i];
  const int64_t tap = i / p.group_in_channels, c = i - tap * p.group_in_channels;
  const int64_t taps = int64_t{p.kernel_h} * p.kernel_w, k = tap / taps, rs = tap - k * taps;
  const int64_t r = rs / p.kernel_w, s = rs - r * p.kernel_w;
  static_cast<E*>(p.out)[k * p.stride_k + c * p.stride_c + r * p.stride_r + s * p.stride_s] =
      from_float<E>(sum);
}

}  // namespace fastres::cuda

using namespace fastres::cuda;

#define FASTRES_WEIGHT_KERNELS(SUFFIX, TYPE)                                                 \
  FASTRES_KERNEL(fastres_pack_weight_##SUFFIX, kElementwiseThreads, 1, PackWeightParams,     \
                 pack_weight<TYPE>(params))                                                  \
  FASTRES_KERNEL(fastres_reduce_splits_##SUFFIX, kElementwiseThreads, 1, ReduceSplitsParams, \
                 reduce_splits<TYPE>(params))

FASTRES_WEIGHT_KERNELS(f16, f16)
FASTRES_WEIGHT_KERNELS(bf16, bf16)
FASTRES_WEIGHT_KERNELS(f32, float)

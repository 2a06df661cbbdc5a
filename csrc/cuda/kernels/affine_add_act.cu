// affine_add_act and its backward: one pass over the tensors, each thread with one chunk of
// channels.

#include "../device/activation.cuh"
#include "../device/element.cuh"
#include "../device/registry.cuh"

namespace fastres::cuda {

template <class E>
struct BlockEnd {
  static constexpr int V = kVec<E>;
  const AffineAddActParams& p;
  int channel, row;
  bool exists, whole;
  int64_t begin, end;
  float mean[V], scale[V], bias[V], res_mean[V], res_scale[V], res_bias[V];

  __device__ explicit BlockEnd(const AffineAddActParams& params) : p(params) {
    const int column_block = blockIdx.x % p.column_blocks;
    const int64_t pixel_block = blockIdx.x / p.column_blocks;
    channel = (column_block * p.columns + threadIdx.x % p.columns) * V;
    row = threadIdx.x / p.columns;
    exists = channel < p.channels && row < p.rows;
    whole = p.channels % V == 0;
    begin = pixel_block * p.pixels_per_block;
    end = begin + p.pixels_per_block < p.pixels ? begin + p.pixels_per_block : p.pixels;
    vector(p.mean, 0.0F, mean);
    vector(p.scale, 1.0F, scale);
    vector(p.bias, 0.0F, bias);
    vector(p.res_mean, 0.0F, res_mean);
    vector(p.res_scale, 1.0F, res_scale);
    vector(p.res_bias, 0.0F, res_bias);
  }

  __device__ void vector(const float* from, float missing, float (&v)[V]) const {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      v[i] = from != nullptr && exists && channel + i < p.channels ? from[channel + i] : missing;
    }
  }

  __device__ void read(const void* from, int64_t pixel, float (&v)[V]) const {
    const E* at = static_cast<const E*>(from) + pixel * p.channels + channel;
    if (whole) return unpack_chunk<E>(__ldg(reinterpret_cast<const uint4*>(at)), v);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = channel + i < p.channels ? to_float(at[i]) : 0.0F;
  }

  __device__ void write(void* to, int64_t pixel, const float (&v)[V]) const {
    E* at = static_cast<E*>(to) + pixel * p.channels + channel;
    if (whole) {
      *reinterpret_cast<uint4*>(at) = pack_chunk<E>(v);
      return;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (channel + i < p.channels) at[i] = from_float<E>(v[i]);
    }
  }

  __device__ void forward() const {
    if (!exists) return;
#pragma unroll 2
    for (int64_t pixel = begin + row; pixel < end; pixel += p.rows) {
      float y[V], r[V] = {};
      read(p.y, pixel, y);
      if (p.residual != nullptr) read(p.residual, pixel, r);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        float v = (y[i] - mean[i]) * scale[i] + bias[i];
        if (p.residual != nullptr) v += (r[i] - res_mean[i]) * res_scale[i] + res_bias[i];
        y[i] = apply_act(v, p.act, p.act_slope);
      }
      write(p.out, pixel, y);
    }
  }

  __device__ void backward(float* shared) const {
    float sum[V] = {}, centred[V] = {}, res_centred[V] = {};
    for (int64_t pixel = begin + row; pixel < end && exists; pixel += p.rows) {
      float g[V], y[V], r[V] = {}, out[V];
      read(p.grad, pixel, g);
      read(p.y, pixel, y);
      if (p.residual != nullptr) read(p.residual, pixel, r);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float deviation = y[i] - mean[i], res_deviation = r[i] - res_mean[i];
        float before = deviation * scale[i] + bias[i];
        if (p.residual != nullptr) before += res_deviation * res_scale[i] + res_bias[i];
        g[i] = act_grad(g[i], before, p.act, p.act_slope);
        sum[i] += g[i];
        centred[i] += g[i] * deviation;
        res_centred[i] += g[i] * res_deviation;
        out[i] = p.unscaled != 0 ? g[i] : g[i] * scale[i];
        g[i] *= res_scale[i];
      }
      write(p.out, pixel, out);
      if (p.grad_residual != nullptr) write(p.grad_residual, pixel, g);
    }
    reduce(0, sum, shared);
    reduce(1, centred, shared);
    reduce(2, res_centred, shared);
  }

  // Over the block's rows, in their order.
  __device__ void reduce(int term, const float (&v)[V], float* shared) const {
    const int width = p.columns * V;
    if (row < p.rows) {
#pragma unroll
      for (int i = 0; i < V; ++i)
        shared[row * width + i * p.columns + threadIdx.x % p.columns] = v[i];
    }
    __syncthreads();
    if (row == 0 && exists) {
      const int64_t pixel_block = blockIdx.x / p.column_blocks;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        float total = 0.0F;
        for (int other = 0; other < p.rows; ++other) {
          total += shared[other * width + i * p.columns + threadIdx.x];
        }
        if (channel + i < p.channels) {
          p.partial[(pixel_block * p.channels + channel + i) * 3 + term] = total;
        }
      }
    }
    __syncthreads();
  }
};

}  // namespace fastres::cuda

using namespace fastres::cuda;

#define FASTRES_AFFINE_ADD_ACT(SUFFIX, TYPE)                                                  \
  FASTRES_KERNEL(fastres_affine_add_act_##SUFFIX, kElementwiseThreads, 2, AffineAddActParams, \
                 BlockEnd<TYPE>(params).forward())                                            \
  FASTRES_KERNEL(fastres_affine_add_act_backward_##SUFFIX, kElementwiseThreads, 2,            \
                 AffineAddActParams,                                                          \
                 BlockEnd<TYPE>(params).backward(reinterpret_cast<float*>(shared)))

FASTRES_AFFINE_ADD_ACT(f16, f16)
FASTRES_AFFINE_ADD_ACT(bf16, bf16)
FASTRES_AFFINE_ADD_ACT(f32, float)

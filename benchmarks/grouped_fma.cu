// The grouped 3x3 of 4 channels a group without tensor cores, to be counted beside grouped_conv:
// benchmarks/gpu_grouped.py. The same patch, tile, epilogue and launch; a thread has one group and
// every sixteenth pixel of the tile, its weights in registers.

#include "../csrc/cuda/kernels/grouped_conv.cuh"

namespace fastres::cuda {

// A group's four output channels of one pixel, one tap further: products of pairs of input
// channels, in float16 (half2 multiply-adds) or in float32.
struct HalfSums {
  __half2 pairs[4] = {};

  __device__ void add(const uint2& x, const __half2 (&w)[4][2]) {
    const __half2 low = *reinterpret_cast<const __half2*>(&x.x);
    const __half2 high = *reinterpret_cast<const __half2*>(&x.y);
#pragma unroll
    for (int k = 0; k < 4; ++k) pairs[k] = __hfma2(high, w[k][1], __hfma2(low, w[k][0], pairs[k]));
  }
  __device__ float get(int k) const { return __low2float(pairs[k]) + __high2float(pairs[k]); }
};

struct FloatSums {
  float sums[4] = {};

  __device__ void add(const uint2& x, const __half2 (&w)[4][2]) {
    const float2 low = unpack(x.x, f16{}), high = unpack(x.y, f16{});
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 a = __half22float2(w[k][0]), b = __half22float2(w[k][1]);
      sums[k] = fmaf(low.x, a.x, fmaf(low.y, a.y, fmaf(high.x, b.x, fmaf(high.y, b.y, sums[k]))));
    }
  }
  __device__ float get(int k) const { return sums[k]; }
};

template <class Sums>
__device__ void grouped_fma(const GroupedConvParams& p, char* shared) {
  using Conv = GroupedConv<f16, 4>;
  constexpr int kGroups = Conv::kChannels / 4, kLanes = Conv::kThreads / kGroups;
  const Conv conv(p, shared);
  const PatchLayout layout(p.patch_w, p.window.stride_w);
  const PatchSource from{p.source, conv.image * p.in_h * p.in_w, p.in_h, p.in_w, 1, 1, p.channels};
  load_patch<f16, Conv::kThreads>(
      shared, layout, from, conv.tile_h0 * p.window.stride_h - p.window.pad_top,
      conv.tile_w0 * p.window.stride_w - p.window.pad_left, p.patch_h, p.patch_w, conv.channel0);
  // Neighbouring lanes have neighbouring groups: they read a pixel's whole line.
  const int group = threadIdx.x % kGroups, lane = threadIdx.x / kGroups;
  __half2 weight[kGroupedTaps][4][2];
  for (int k = 0; k < 4; ++k) {
    const auto* row = reinterpret_cast<const __half2*>(static_cast<const f16*>(p.weight) +
                                                       (conv.channel0 + group * 4 + k) * p.pitch);
#pragma unroll
    for (int tap = 0; tap < kGroupedTaps; ++tap) {
      weight[tap][k][0] = row[tap * 2];
      weight[tap][k][1] = row[tap * 2 + 1];
    }
  }
  copy_wait<0>();
  __syncthreads();
  Sums sums[Conv::kBM / kLanes];
#pragma unroll
  for (int tap = 0; tap < kGroupedTaps; ++tap) {
#pragma unroll
    for (int i = 0; i < Conv::kBM / kLanes; ++i) {
      const int row = i * kLanes + lane, h = row / kGroupedTileWidth, w = row % kGroupedTileWidth;
      if (h >= p.tile_h) break;
      const int pixel = (h + tap / 3) * layout.pitch() + w + tap % 3;  // stride and dilation 1
      const char* at = shared + PatchLayout::offset(pixel, group / 2) + group % 2 * 8;
      sums[i].add(*reinterpret_cast<const uint2*>(at), weight[tap]);
    }
  }
  __syncthreads();  // the patch's memory becomes the staged tile's
  Conv::Tail tail(shared, p.epilogue, conv.channel0, p.channels - conv.channel0);
#pragma unroll
  for (int i = 0; i < Conv::kBM / kLanes; ++i) {
    const Sums& s = sums[i];
    *reinterpret_cast<float4*>(tail.tile +
                               staged<Conv::kChannels>(i * kLanes + lane, group * 4)) = {
        s.get(0), s.get(1), s.get(2), s.get(3)};
  }
  tail.run<false>(conv.tile_id, [&](int row) -> int64_t {
    const int h = conv.tile_h0 + row / kGroupedTileWidth;
    const int w = conv.tile_w0 + row % kGroupedTileWidth;
    if (row >= p.tile_h * kGroupedTileWidth || h >= p.out_h || w >= p.out_w) return -1;
    return (conv.image * p.out_h + h) * p.out_w + w;
  });
}

}  // namespace fastres::cuda

FASTRES_KERNEL(grouped_half2, 256, 2, GroupedConvParams,
               fastres::cuda::grouped_fma<fastres::cuda::HalfSums>(params, shared))
FASTRES_KERNEL(grouped_float, 256, 1, GroupedConvParams,
               fastres::cuda::grouped_fma<fastres::cuda::FloatSums>(params, shared))

// The weight gradient of grouped_conv's convolutions: output channels x input channels of one tap
// over pixels, block-diagonally where groups are narrower than the 16 channels of an instruction. A
// block goes through tiles of pixels with all sums in registers; reduce_splits adds up the blocks'.

#pragma once

#include "../device/patch.cuh"
#include "../device/registry.cuh"

namespace fastres::cuda {

template <class E, int WIDTH>
struct GroupedWgrad {
  static constexpr int kChannels = grouped_channels(sizeof(E));
  static constexpr int kThreads = grouped_wgrad_threads(WIDTH, sizeof(E));
  static constexpr int kInBlocks =
      WIDTH == 32 ? 2 : 1;  // of 16 channels, to one of output channels
  static constexpr int kTaps = 9;
  static constexpr int kStepRows = sizeof(E) == 2 ? 2 : 1;  // rows of 8 pixels an instruction sums

  const GroupedWgradParams& p;
  char* patch;
  char* gradient;
  int channel0;
  int64_t split;

  __device__ GroupedWgrad(const GroupedWgradParams& params, char* shared)
      : p(params), patch(shared), gradient(shared + patch_bytes(params)) {
    const int blocks = (p.channels + kChannels - 1) / kChannels;
    channel0 = static_cast<int>(blockIdx.x % blocks) * kChannels;
    split = blockIdx.x / blocks;
  }

  __device__ static int patch_bytes(const GroupedWgradParams& p) {
    const PatchLayout layout(p.patch_w, p.window.stride_w);
    return p.patch_h * layout.pitch() * kGroupedBytes;
  }

  // This warp's output and input channels of the block.
  __device__ static int out_channel() { return (threadIdx.x >> 5) / kInBlocks * 16; }
  __device__ static int in_channel() {
    const int warp = threadIdx.x >> 5;
    return kInBlocks == 1 ? warp * 16 : (warp / 4 * 2 + warp % 2) * 16;
  }

  float acc[kTaps][2][4] = {};

  __device__ void run() {
    const int64_t tiles = static_cast<int64_t>(p.batch) * p.tiles_h * p.tiles_w;
    const int64_t begin = split * p.tiles_per_split;
    const int64_t end = begin + p.tiles_per_split < tiles ? begin + p.tiles_per_split : tiles;
    const PatchLayout layout(p.patch_w, p.window.stride_w);
    const PatchLayout rows(kGroupedTileWidth, 1);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int w0 = static_cast<int>(tile % p.tiles_w) * kGroupedTileWidth;
      const int64_t line = tile / p.tiles_w, n = line / p.tiles_h;
      const int h0 = static_cast<int>(line % p.tiles_h) * p.tile_h;
      const PatchSource source{p.source, n * p.in_h * p.in_w, p.in_h, p.in_w, 1, 1, p.channels};
      const PatchSource grad{p.gradient, n * p.out_h * p.out_w, p.out_h, p.out_w, 1, 1, p.channels};
      load_patch<E, kThreads>(patch, layout, source, h0 * p.window.stride_h - p.window.pad_top,
                              w0 * p.window.stride_w - p.window.pad_left, p.patch_h, p.patch_w,
                              channel0);
      load_patch<E, kThreads>(gradient, rows, grad, h0, w0, p.tile_h, kGroupedTileWidth, channel0);
      copy_wait<0>();
      __syncthreads();
      for (int row = 0; row < p.tile_h; row += kStepRows) multiply(layout, row);
      __syncthreads();
    }
    write();
  }

  __device__ static uint32_t word(const char* base, int pixel, int channel) {
    return *reinterpret_cast<const uint32_t*>(base + PatchLayout::offset(pixel, channel / kVec<E>) +
                                              channel % kVec<E> * sizeof(E));
  }

  // Adds up kStepRows rows of eight pixels from `row` on.
  __device__ void multiply(const PatchLayout& layout, int row) {
    const int lane = threadIdx.x & 31;
    const int line = p.window.stride_h * layout.pitch();
    uint32_t a[4];
    if constexpr (sizeof(E) == 2) {
      const int pixel = (row + (lane >> 4)) * kGroupedTileWidth + (lane & 7);
      load_matrices_transposed(
          a, shared_address(gradient +
                            PatchLayout::offset(pixel, out_channel() / 8 + ((lane >> 3) & 1))));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = word(gradient, row * kGroupedTileWidth + (i >> 1) * 4 + (lane & 3),
                    out_channel() + (i & 1) * 8 + (lane >> 2));
      }
    }
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      const int at = tap / 3 * p.window.dilation_h * layout.pitch() +
                     layout.column(tap % 3 * p.window.dilation_w) + row * line;
      uint32_t b[4];
      if constexpr (sizeof(E) == 2) {
        const int pixel = at + ((lane >> 3) & 1) * line + (lane & 7);
        load_matrices_transposed(
            b, shared_address(patch + PatchLayout::offset(pixel, in_channel() / 8 + (lane >> 4))));
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          b[i] =
              word(patch, at + (i & 1) * 4 + (lane & 3), in_channel() + (i >> 1) * 8 + (lane >> 2));
        }
      }
      mma(acc[tap][0], a, b[0], b[1], E{});
      mma(acc[tap][1], a, b[2], b[3], E{});
    }
  }

  __device__ void write() const {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = out_channel() + (i >> 1) * 8 + (lane >> 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = in_channel() + half * 8 + 2 * (lane & 3) + (i & 1);
        if (k / WIDTH != c / WIDTH || channel0 + k >= p.channels) continue;
        float* to = p.partial + (split * p.channels + channel0 + k) * (kTaps * WIDTH) + c % WIDTH;
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) to[tap * WIDTH] = acc[tap][half][i];
      }
    }
  }
};

}  // namespace fastres::cuda

#define FASTRES_GROUPED_WGRAD(WIDTH, SUFFIX, TYPE)                                          \
  FASTRES_KERNEL(fastres_grouped_wgrad_##WIDTH##_##SUFFIX,                                  \
                 fastres::cuda::grouped_wgrad_threads(WIDTH, sizeof(TYPE)),                 \
                 (fastres::cuda::grouped_wgrad_threads(WIDTH, sizeof(TYPE)) > 128 ? 1 : 2), \
                 GroupedWgradParams,                                                        \
                 (fastres::cuda::GroupedWgrad<TYPE, WIDTH>(params, shared).run()))

#define FASTRES_GROUPED_WGRAD_WIDTHS(SUFFIX, TYPE) \
  FASTRES_GROUPED_WGRAD(4, SUFFIX, TYPE)           \
  FASTRES_GROUPED_WGRAD(8, SUFFIX, TYPE)           \
  FASTRES_GROUPED_WGRAD(16, SUFFIX, TYPE)          \
  FASTRES_GROUPED_WGRAD(32, SUFFIX, TYPE)

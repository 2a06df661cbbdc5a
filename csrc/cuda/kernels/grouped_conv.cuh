// 3x3 convolutions of 4, 8, 16 or 32 channels a group, in and out, on tensor cores.
//
// Narrow groups fill instructions with zeros (device/grouped_weight.cuh). Multiply-adds of half2
// take more instructions still (benchmarks/gpu_grouped.py), and these layers are bound by memory.

#pragma once

#include "../device/epilogue.cuh"
#include "../device/grouped_weight.cuh"
#include "../device/registry.cuh"

namespace fastres::cuda {

template <class E, int WIDTH>
struct GroupedConv {
  static constexpr int kChannels = grouped_channels(sizeof(E));
  static constexpr int kColumns = grouped_columns(WIDTH, sizeof(E));
  static constexpr int kThreads = grouped_threads(WIDTH, sizeof(E));
  static constexpr int kBM = kGroupedTileWidth * kGroupedTileHeight;
  static constexpr int kFragments = kBM / 16;
  using Weight = GroupedWeight<E, WIDTH>;
  static constexpr int kSteps = Weight::kSteps;
  using Tail = TileEpilogue<E, kBM, kChannels, kThreads>;

  const GroupedConvParams& p;
  char* shared;
  int tile_id, tile_w0, tile_h0, channel0;
  int64_t image;

  __device__ GroupedConv(const GroupedConvParams& params, char* memory)
      : p(params), shared(memory) {
    const int blocks = (p.channels + kChannels - 1) / kChannels;
    channel0 = static_cast<int>(blockIdx.x % blocks) * kChannels;
    tile_id = static_cast<int>(blockIdx.x / blocks);
    int64_t id = tile_id;
    tile_w0 = static_cast<int>(id % p.tiles_w) * kGroupedTileWidth;
    id /= p.tiles_w;
    tile_h0 = static_cast<int>(id % p.tiles_h) * p.tile_h;
    image = id / p.tiles_h;
  }

  __device__ void run() {
    const int warp = threadIdx.x >> 5;
    const PatchLayout layout(p.patch_w, p.window.stride_w);
    const PatchSource from{
        p.source, image * p.in_h * p.in_w, p.in_h, p.in_w, p.upsample_h, p.upsample_w, p.channels};
    load_patch<E, kThreads>(shared, layout, from, tile_h0 * p.window.stride_h - p.window.pad_top,
                            tile_w0 * p.window.stride_w - p.window.pad_left, p.patch_h, p.patch_w,
                            channel0);
    uint32_t weight[kColumns][kSteps][2];
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const int first = channel0 + (warp * kColumns + n) * 8;
      Weight::load(weight[n], p.weight, p.pitch, first, p.channels);
    }
    copy_wait<0>();
    __syncthreads();

    float acc[kFragments][kColumns][4] = {};
    multiply(layout, weight, acc);
    __syncthreads();  // the patch's memory becomes the staged tile's
    Tail tail(shared, p.epilogue, channel0, p.channels - channel0);
#pragma unroll
    for (int m = 0; m < kFragments; ++m) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        stage_fragment<kChannels>(tail.tile, m * 16, (warp * kColumns + n) * 8, acc[m][n]);
      }
    }
    tail.template run<true>(tile_id, [&](int row) -> int64_t {
      const int h = tile_h0 + row / kGroupedTileWidth, w = tile_w0 + row % kGroupedTileWidth;
      if (row >= p.tile_h * kGroupedTileWidth || h >= p.out_h || w >= p.out_w) return -1;
      return (image * p.out_h + h) * p.out_w + w;
    });
  }

  __device__ void multiply(const PatchLayout& layout, const uint32_t (&weight)[kColumns][kSteps][2],
                           float (&acc)[kFragments][kColumns][4]) const {
    // This warp's output channels read input from this chunk on.
    const int first = Weight::first_chunk((threadIdx.x >> 5) * kColumns * 8);
    const uint32_t base = shared_address(shared);
    const int line = p.window.stride_h * layout.pitch();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const auto at = Weight::operand(step, layout, p.window);
#pragma unroll
      for (int m = 0; m < kFragments; ++m) {
        if (m * 2 >= p.tile_h) break;
        uint32_t a[4];
        load_matrices(a, base + PatchLayout::offset(at.pixel + 2 * m * line, first + at.chunk));
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          mma(acc[m][n], a, weight[n][step][0], weight[n][step][1], E{});
        }
      }
    }
  }
};

}  // namespace fastres::cuda

#define FASTRES_GROUPED_CONV(WIDTH, SUFFIX, TYPE)                                           \
  FASTRES_KERNEL(fastres_grouped_conv_##WIDTH##_##SUFFIX,                                   \
                 fastres::cuda::grouped_threads(WIDTH, sizeof(TYPE)), 2, GroupedConvParams, \
                 (fastres::cuda::GroupedConv<TYPE, WIDTH>(params, shared).run()))

#define FASTRES_GROUPED_CONV_WIDTHS(SUFFIX, TYPE) \
  FASTRES_GROUPED_CONV(4, SUFFIX, TYPE)           \
  FASTRES_GROUPED_CONV(8, SUFFIX, TYPE)           \
  FASTRES_GROUPED_CONV(16, SUFFIX, TYPE)          \
  FASTRES_GROUPED_CONV(32, SUFFIX, TYPE)

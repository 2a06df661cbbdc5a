// 3x3 convolutions of 4, 8, 16 or 32 channels a group, in and out, on tensor cores.
//
// An instruction multiplies 16 pixels by 8 output channels over two chunks of the reduction (tap,
// input chunk). Eight output channels of narrow groups need the same eight input channels, so
// several groups share an instruction, block-diagonally: of 4 channels a group half of it is zeros.
// That still is several times the rate of half2 multiply-adds, and these layers are bound by
// memory.

#pragma once

#include "../device/epilogue.cuh"
#include "../device/patch.cuh"
#include "../device/registry.cuh"

namespace fastres::cuda {

constexpr int kGroupedTaps = 9;

template <class E, int WIDTH>
struct GroupedConv {
  static constexpr int kChannels = grouped_channels(sizeof(E));
  static constexpr int kColumns = grouped_columns(WIDTH, sizeof(E));
  static constexpr int kThreads = grouped_threads(WIDTH, sizeof(E));
  static constexpr int kBM = kGroupedTileWidth * kGroupedTileHeight;
  static constexpr int kFragments = kBM / 16;
  // Input chunks that eight output channels read, at one tap and at all.
  static constexpr int kInChunks = (WIDTH > 8 ? WIDTH : 8) / kVec<E>;
  static constexpr int kSteps = (kGroupedTaps * kInChunks + 1) / 2;
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

  // A word of the weights: two 16-bit values or one of 32 bits, of output channel `k` (of this
  // block), chunk q of the reduction. Zero outside of the channel's own group.
  __device__ uint32_t weight_word(int k, int q) const {
    const int lane = threadIdx.x & 3;
    constexpr int kWordElements = 4 / static_cast<int>(sizeof(E));
    const int tap = q / kInChunks;
    int c = q % kInChunks * kVec<E> + lane * kWordElements;
    if (tap >= kGroupedTaps || channel0 + k >= p.channels) return 0;
    if (WIDTH < 8) {
      if (c / WIDTH != k % 8 / WIDTH) return 0;
      c %= WIDTH;
    }
    const E* row = static_cast<const E*>(p.weight) + static_cast<int64_t>(channel0 + k) * p.pitch;
    return __ldg(reinterpret_cast<const uint32_t*>(row + tap * WIDTH + c));
  }

  __device__ void run() {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const PatchLayout layout(p.patch_w, p.window.stride_w);
    const PatchSource from{
        p.source, image * p.in_h * p.in_w, p.in_h, p.in_w, p.upsample_h, p.upsample_w, p.channels};
    load_patch<E, kThreads>(shared, layout, from, tile_h0 * p.window.stride_h - p.window.pad_top,
                            tile_w0 * p.window.stride_w - p.window.pad_left, p.patch_h, p.patch_w,
                            channel0);
    uint32_t weight[kColumns][kSteps][2];
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int k = (warp * kColumns + n) * 8 + (lane >> 2);
        weight[n][step][0] = weight_word(k, 2 * step);
        weight[n][step][1] = weight_word(k, 2 * step + 1);
      }
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
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    // This warp's output channels read input from this chunk on.
    const int first = warp * kColumns * 8 / (WIDTH > 8 ? WIDTH : 8) * kInChunks;
    const uint32_t base = shared_address(shared);
    const int line = p.window.stride_h * layout.pitch();
    const int row = (lane & 15) / kGroupedTileWidth * line + lane % kGroupedTileWidth;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      // Lanes of the upper half give the addresses of the second chunk; beyond the last one they
      // repeat it, times zero.
      int q = 2 * step + (lane >> 4);
      if (q >= kGroupedTaps * kInChunks) q = kGroupedTaps * kInChunks - 1;
      const int tap = q / kInChunks, r = tap / 3, s = tap - 3 * r;
      const int pixel =
          row + r * p.window.dilation_h * layout.pitch() + layout.column(s * p.window.dilation_w);
#pragma unroll
      for (int m = 0; m < kFragments; ++m) {
        if (m * 2 >= p.tile_h) break;
        uint32_t a[4];
        load_matrices(a, base + PatchLayout::offset(pixel + 2 * m * line, first + q % kInChunks));
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

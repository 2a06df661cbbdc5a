// A whole bottleneck in one kernel: 1x1, grouped 3x3, 1x1, plus the shortcut, an activation after
// each. A block makes tile_h x 8 pixels of the output, all channels of them.
//
// Groups do not meet in the 3x3, so the first two convolutions go through kGroupedBytes of inner
// channels at a time: the 1x1 of the tile and its halo into the patch, the 3x3 from there into
// `inner`, which is the only thing that holds all inner channels, of the tile alone. A shortcut
// convolution is summed into the accumulators of the last 1x1.

#pragma once

#include "../device/epilogue.cuh"
#include "../device/grouped_weight.cuh"
#include "../device/patch.cuh"
#include "../device/registry.cuh"

namespace fastres::cuda {

template <class E, int WIDTH>
struct GroupedBottleneck {
  static constexpr int kThreads = kBottleneckThreads;
  static constexpr int kPixels = kBottleneckPixels;  // of a product
  // Output channels of a product, and inner channels of the patch.
  static constexpr int kChannels = grouped_channels(sizeof(E));
  static constexpr int kWarpsM = 4, kWarpsN = 2;
  static constexpr int kFragM = kPixels / kWarpsM / 8, kFragN = kChannels / kWarpsN / 16;
  static constexpr int kChunks = kTileRowBytes / kChunkBytes;  // of one row in a stage
  static constexpr int kRowStep = kThreads / kChunks;
  static constexpr int kStep = kChunks * kVec<E>;  // channels of a stage
  static constexpr int kStageBytes = (kPixels + kChannels) * kTileRowBytes;
  static constexpr int kStagesBytes = bottleneck_stage_bytes(kChannels);
  static constexpr int kRows = kPixels / kRowStep;
  using Weight = GroupedWeight<E, WIDTH>;
  using Tail = TileEpilogue<E, kPixels, kChannels, kThreads>;

  const BottleneckParams& p;
  char *stages, *patch, *inner;
  PatchLayout layout;
  int tile_id, tile_h0, tile_w0, tile_pixels;
  int64_t image;

  __device__ GroupedBottleneck(const BottleneckParams& params, char* memory)
      : p(params), stages(memory), layout(params.patch_w, params.window.stride_w) {
    patch = stages + kStagesBytes;
    inner = patch + p.patch_h * layout.pitch() * kGroupedBytes;
    tile_id = static_cast<int>(blockIdx.x);
    int64_t id = tile_id;
    tile_w0 = static_cast<int>(id % p.tiles_w) * kGroupedTileWidth;
    id /= p.tiles_w;
    tile_h0 = static_cast<int>(id % p.tiles_h) * p.tile_h;
    image = id / p.tiles_h;
    tile_pixels = p.tile_h * kGroupedTileWidth;
  }

  __device__ void run() {
    const int blocks = (p.width + kChannels - 1) / kChannels;
    for (int block = 0; block < blocks; ++block) {
      reduce(block * kChannels);
      __syncthreads();
      spatial(block);
    }
    for (int first = 0; first < p.out_channels; first += kChannels) expand(first);
  }

  // ---- products of at most kPixels pixels by kChannels channels

  float acc[kFragM][kFragN][4];

  __device__ static int lane() { return threadIdx.x & 31; }
  // Fragments of eight pixels are dealt out to the warps, so that a small tile keeps all busy.
  __device__ static int fragment(int m) { return m * kWarpsM + (threadIdx.x >> 5) / kWarpsN; }
  __device__ static int warp_channel(int n) {
    return ((threadIdx.x >> 5) % kWarpsN * kFragN + n) * 16;
  }
  __device__ static int chunk() { return threadIdx.x % kChunks; }
  __device__ static int row(int i) { return threadIdx.x / kChunks + i * kRowStep; }
  __device__ static uint32_t swizzled(int row, int chunk) {
    return row * kTileRowBytes + ((chunk ^ ((row >> 1) & 3)) << 4);
  }
  __device__ char* stage_pixels(int slot) const { return stages + slot * kStageBytes; }
  __device__ char* stage_weights(int slot) const {
    return stage_pixels(slot) + kPixels * kTileRowBytes;
  }

  // One stage of a matrix [channels][pitch]: kChannels rows from `first`, columns from `column`.
  __device__ void copy_weights(int slot, const BottleneckWeight& w, int first, int channels,
                               int columns, int column) const {
    const E* data = static_cast<const E*>(w.data);
    column += chunk() * kVec<E>;
#pragma unroll
    for (int i = 0; i < (kChannels + kRowStep - 1) / kRowStep; ++i) {
      if (kChannels % kRowStep != 0 && row(i) >= kChannels) break;
      const int k = first + row(i);
      const bool exists = k < channels && column < columns;
      copy_async(shared_address(stage_weights(slot) + swizzled(row(i), chunk())),
                 data + (exists ? static_cast<int64_t>(k) * w.pitch + column : 0), exists);
    }
  }

  // One stage of x at this thread's rows; negative pixels are zeros.
  __device__ void copy_pixels(int slot, const int64_t (&pixels)[kRows], int fragments,
                              int column) const {
    column += chunk() * kVec<E>;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (row(i) >= fragments * 8) break;
      const bool exists = pixels[i] >= 0 && column < p.in_channels;
      copy_async(shared_address(stage_pixels(slot) + swizzled(row(i), chunk())),
                 static_cast<const E*>(p.x) + (exists ? pixels[i] * p.in_channels + column : 0),
                 exists);
    }
  }

  // acc += pixels x weights over `count` stages, of `fragments` times eight pixels.
  // `copy(index, slot)` fetches a stage, `address(index, slot, row, chunk)` is where its pixels
  // are.
  template <class Copy, class Address>
  __device__ void multiply(int count, int fragments, const Copy& copy, const Address& address) {
    const auto copy_stage = [&](int index) {
      if (index < count) copy(index, index % kStages);
      copy_commit();  // a group a stage, empty ones too, so that the wait below can count
    };
    for (int index = 0; index < kStages - 1; ++index) copy_stage(index);
    for (int index = 0; index < count; ++index) {
      copy_wait<kStages - 2>();
      __syncthreads();
      copy_stage(index + kStages - 1);
      const int slot = index % kStages;
      const uint32_t weights = shared_address(stage_weights(slot));
#pragma unroll
      for (int step = 0; step < kChunks; step += 2) {
        uint32_t w[kFragN][4];
#pragma unroll
        for (int n = 0; n < kFragN; ++n) {
          const int at = warp_channel(n) + (lane() & 15);
          load_matrices(w[n], weights + swizzled(at, step + (lane() >> 4)));
        }
#pragma unroll
        for (int m = 0; m < kFragM; m += 2) {
          if (fragment(m) >= fragments) break;
          uint32_t x[4];
          const int at = min(fragment(m + (lane() >> 4)), fragments - 1) * 8 + (lane() & 7);
          load_matrices(x, address(index, slot, at, step + ((lane() >> 3) & 1)));
#pragma unroll
          for (int n = 0; n < kFragN; ++n) mma(acc[m][n], w[n], x[0], x[1], E{});
          if (fragment(m + 1) >= fragments) break;
#pragma unroll
          for (int n = 0; n < kFragN; ++n) mma(acc[m + 1][n], w[n], x[2], x[3], E{});
        }
      }
    }
    copy_wait<0>();
    __syncthreads();  // the stages may be used for something else
  }

  // ---- the three convolutions

  // The 1x1: kChannels inner channels of the tile and its halo, zeros outside of the image.
  __device__ void reduce(int first) {
    const int pixels = p.patch_h * p.patch_w;
    for (int begin = 0; begin < pixels; begin += kPixels) {
      const int fragments = (min(pixels - begin, kPixels) + 7) / 8;
      int64_t source[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) source[i] = patch_source(begin + row(i));
      clear();
      multiply((p.in_channels + kStep - 1) / kStep, fragments,
               [&](int index, int slot) {
                 copy_pixels(slot, source, fragments, index * kStep);
                 copy_weights(slot, p.reduce, first, p.width, p.in_channels, index * kStep);
               },
               [&](int, int slot, int at, int c) {
                 return shared_address(stage_pixels(slot)) + swizzled(at, c);
               });
      store_patch(first, begin, fragments);
    }
  }

  // Of the patch's pixel q: where it is in x, negative where it is padding or none.
  __device__ int64_t patch_source(int q) const {
    const int i = q / p.patch_w, j = q - i * p.patch_w;
    const int h = tile_h0 * p.window.stride_h - p.window.pad_top + i;
    const int w = tile_w0 * p.window.stride_w - p.window.pad_left + j;
    if (i >= p.patch_h || h < 0 || w < 0 || h >= p.in_h || w >= p.in_w) return -1;
    return (image * p.in_h + h) * p.in_w + w;
  }

  __device__ void store_patch(int first, int begin, int fragments) const {
    float shift[kFragN][2];
#pragma unroll
    for (int n = 0; n < kFragN; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = first + warp_channel(n) + half * 8 + (lane() >> 2);
        shift[n][half] = c < p.width ? __ldg(p.reduce.shift + c) : 0.0F;
      }
    }
#pragma unroll
    for (int m = 0; m < kFragM; ++m) {
      if (fragment(m) >= fragments) break;
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int q = begin + fragment(m) * 8 + 2 * (lane() & 3) + odd;
        const int i = q / p.patch_w, j = q - i * p.patch_w;
        if (i >= p.patch_h) continue;
        const bool inside = patch_source(q) >= 0;
        const int slot = i * layout.pitch() + layout.column(j);
#pragma unroll
        for (int n = 0; n < kFragN; ++n) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int c = warp_channel(n) + half * 8 + (lane() >> 2);
            const float v = apply_act(acc[m][n][half * 2 + odd] + shift[n][half], p.act, p.slope);
            E* to = reinterpret_cast<E*>(patch + PatchLayout::offset(slot, c / kVec<E>));
            to[c % kVec<E>] = from_float<E>(inside ? v : 0.0F);
          }
        }
      }
    }
  }

  // The 3x3: the patch's channels of the tile, into their block of `inner`. A fragment is two rows
  // of the tile; a warp has eight of the channels.
  __device__ void spatial(int block) const {
    constexpr int kColumns = kChannels / 8, kParts = kThreads / 32 / kColumns;
    const int warp = threadIdx.x >> 5, column = warp % kColumns;
    const int first = block * kChannels + column * 8;
    uint32_t weight[Weight::kSteps][2];
    Weight::load(weight, p.spatial.data, p.spatial.pitch, first, p.width);
    const int channel = 2 * (lane() & 3);
    float shift[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int c = first + channel + i;
      shift[i] = c < p.width ? __ldg(p.spatial.shift + c) : 0.0F;
    }
    const uint32_t base = shared_address(patch);
    const int line = p.window.stride_h * layout.pitch(), start = Weight::first_chunk(column * 8);
    char* to = inner + block * tile_pixels * kGroupedBytes;
    const int chunk = (column * 8 + channel) / kVec<E>;
    for (int m = warp / kColumns; m < p.tile_h / 2; m += kParts) {
      float sum[4] = {};
#pragma unroll
      for (int step = 0; step < Weight::kSteps; ++step) {
        const auto at = Weight::operand(step, layout, p.window);
        uint32_t a[4];
        load_matrices(a, base + PatchLayout::offset(at.pixel + 2 * m * line, start + at.chunk));
        mma(sum, a, weight[step][0], weight[step][1], E{});
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = m * 16 + half * 8 + (lane() >> 2);
        const float low = apply_act(sum[half * 2] + shift[0], p.act, p.slope);
        const float high = apply_act(sum[half * 2 + 1] + shift[1], p.act, p.slope);
        store_pair(to + PatchLayout::offset(pixel, chunk) + channel % kVec<E> * sizeof(E), low,
                   high);
      }
    }
  }

  __device__ static void store_pair(char* to, float low, float high) {
    *reinterpret_cast<uint32_t*>(to) = pack(low, high, E{});
  }

  // The last 1x1 and the shortcut: kChannels channels of the tile.
  __device__ void expand(int first) {
    const int fragments = tile_pixels / 8, inner_stages = (p.width + kStep - 1) / kStep;
    int64_t source[kRows];
    int count = inner_stages;
    clear();
    if (p.down.data != nullptr) {
      count += (p.in_channels + kStep - 1) / kStep;
#pragma unroll
      for (int i = 0; i < kRows; ++i) source[i] = shortcut_source(row(i));
      add_shift(first);
    }
    multiply(
        count, fragments,
        [&](int index, int slot) {
          if (index < inner_stages) {
            copy_weights(slot, p.expand, first, p.out_channels, p.width, index * kStep);
            return;
          }
          const int column = (index - inner_stages) * kStep;
          copy_pixels(slot, source, fragments, column);
          copy_weights(slot, p.down, first, p.out_channels, p.in_channels, column);
        },
        [&](int index, int slot, int at, int c) {
          if (index >= inner_stages) return shared_address(stage_pixels(slot)) + swizzled(at, c);
          constexpr int kPerBlock = kGroupedBytes / kTileRowBytes;
          const char* block = inner + index / kPerBlock * tile_pixels * kGroupedBytes;
          return shared_address(block) + PatchLayout::offset(at, index % kPerBlock * kChunks + c);
        });
    Tail tail(stages, p.epilogue, first, p.out_channels - first);
#pragma unroll
    for (int m = 0; m < kFragM; ++m) {
      if (fragment(m) >= fragments) break;
#pragma unroll
      for (int n = 0; n < kFragN; ++n) {
        stage_transposed<kChannels>(tail.tile, fragment(m) * 8, warp_channel(n), acc[m][n]);
      }
    }
    tail.template run<false>(tile_id, [&](int row) -> int64_t {
      const int h = tile_h0 + row / kGroupedTileWidth, w = tile_w0 + row % kGroupedTileWidth;
      if (row >= tile_pixels || h >= p.out_h || w >= p.out_w) return -1;
      return (image * p.out_h + h) * p.out_w + w;
    });
    __syncthreads();  // the staged tile's memory becomes the stages' again
  }

  __device__ int64_t shortcut_source(int row) const {
    const int h = tile_h0 + row / kGroupedTileWidth, w = tile_w0 + row % kGroupedTileWidth;
    if (row >= tile_pixels || h >= p.out_h || w >= p.out_w) return -1;
    return (image * p.in_h + h * p.window.stride_h) * p.in_w + w * p.window.stride_w;
  }

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kFragM; ++m) {
#pragma unroll
      for (int n = 0; n < kFragN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[m][n][i] = 0.0F;
      }
    }
  }

  // The shortcut's shift; the last convolution's is the epilogue's.
  __device__ void add_shift(int first) {
#pragma unroll
    for (int n = 0; n < kFragN; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = first + warp_channel(n) + half * 8 + (lane() >> 2);
        const float shift = c < p.out_channels ? __ldg(p.down.shift + c) : 0.0F;
#pragma unroll
        for (int m = 0; m < kFragM; ++m) {
          acc[m][n][half * 2] += shift;
          acc[m][n][half * 2 + 1] += shift;
        }
      }
    }
  }
};

}  // namespace fastres::cuda

// Two blocks a multiprocessor.
#define FASTRES_GROUPED_BOTTLENECK(WIDTH, SUFFIX, TYPE)                                            \
  FASTRES_KERNEL(fastres_grouped_bottleneck_##WIDTH##_##SUFFIX, fastres::cuda::kBottleneckThreads, \
                 2, BottleneckParams,                                                              \
                 (fastres::cuda::GroupedBottleneck<TYPE, WIDTH>(params, shared).run()))

#define FASTRES_GROUPED_BOTTLENECK_WIDTHS(SUFFIX, TYPE) \
  FASTRES_GROUPED_BOTTLENECK(4, SUFFIX, TYPE)           \
  FASTRES_GROUPED_BOTTLENECK(8, SUFFIX, TYPE)           \
  FASTRES_GROUPED_BOTTLENECK(16, SUFFIX, TYPE)          \
  FASTRES_GROUPED_BOTTLENECK(32, SUFFIX, TYPE)

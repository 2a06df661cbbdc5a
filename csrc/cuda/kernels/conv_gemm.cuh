// Convolution as an implicit matrix product on tensor cores: pixels x output channels x (tap, input
// channel), tiles staged in shared memory in kStages buffers.
//
// Two ways of loading the source. ASYNC: cp.async, what is loaded is what is stored. Otherwise
// through registers, one tile ahead, where the affine, the activation and the addend are applied;
// also channels that are no whole chunks (the stem's three). Weights always come by cp.async.
//
// Output channels are an instruction's 16 rows and pixels its 8 columns: an image that ends inside
// a tile wastes at most 7 pixels, and the fragments beyond its end are left out.

#pragma once

#include "../device/epilogue.cuh"
#include "../device/registry.cuh"
#include "../device/source.cuh"
#include "../device/tensor_core.cuh"

namespace fastres::cuda {

template <class E_, int WARPS_M, int WARPS_N, int FRAGMENTS_M, int FRAGMENTS_N, bool ASYNC>
struct ConvGemm {
  using E = E_;
  static constexpr int kThreads = WARPS_M * WARPS_N * 32;
  static constexpr int kFragM = FRAGMENTS_M, kFragN = FRAGMENTS_N;
  static constexpr int kBM = WARPS_M * FRAGMENTS_M * 8;
  static constexpr int kBN = WARPS_N * FRAGMENTS_N * 16;
  static constexpr int kChunks = kTileRowBytes / kChunkBytes;  // of one row in a stage
  static constexpr int kRowStep = kThreads / kChunks;
  static constexpr int kRowsA = kBM / kRowStep, kRowsB = kBN / kRowStep;
  static constexpr int kStageBytes = (kBM + kBN) * kTileRowBytes;
  // It has no registers to spare for leaving fragments out, and its images so many tiles that the
  // last one hardly counts.
  static constexpr bool kWidest = kBM == 128 && kBN == 128;
  using Tail = TileEpilogue<E, kBM, kBN, kThreads>;

  // Byte offset of a chunk in a stage; eight consecutive rows' chunks lie in different banks.
  __device__ static uint32_t swizzled(int row, int chunk) {
    return row * kTileRowBytes + ((chunk ^ ((row >> 1) & 3)) << 4);
  }

  // Which tap and channel this thread's chunk of the next stage is of.
  struct Cursor {
    int r, s, c;
    bool done;

    __device__ static bool misses(const ConvGemmParams& p, int offset, int tap_offset, int stride) {
      return (offset - tap_offset) % stride != 0;
    }
    __device__ bool skips(const ConvGemmParams& p, int base_h, int base_w) const {
      return misses(p, base_h, r * p.window.dilation_h, p.classes_h) ||
             misses(p, base_w, s * p.window.dilation_w, p.classes_w);
    }
    __device__ void next_tap(const ConvGemmParams& p, int base_h, int base_w) {
      do {
        if (++s == p.window.kernel_w) {
          s = 0;
          if (++r == p.window.kernel_h) {
            done = true;
            return;
          }
        }
      } while (skips(p, base_h, base_w));
    }
    __device__ void start(const ConvGemmParams& p, int base_h, int base_w, int channel) {
      r = s = 0;
      c = channel;
      done = false;
      if (skips(p, base_h, base_w)) next_tap(p, base_h, base_w);
      wrap(p, base_h, base_w);
    }
    __device__ void wrap(const ConvGemmParams& p, int base_h, int base_w) {
      while (c >= p.in_channels && !done) {
        c -= p.in_channels;
        next_tap(p, base_h, base_w);
      }
    }
  };

  const ConvGemmParams& p;
  char* shared;
  int class_h, class_w, rows_h, rows_w;  // this class's pixels
  int group, n0;
  int64_t m0, rows;
  int tile_id;

  __device__ ConvGemm(const ConvGemmParams& params, char* memory) : p(params), shared(memory) {
    int64_t id = blockIdx.x;
    n0 = static_cast<int>(id % p.n_tiles) * kBN;
    id /= p.n_tiles;
    group = static_cast<int>(id % p.groups);
    tile_id = static_cast<int>(id / p.groups);
    const int cls = tile_id / p.m_tiles;
    class_h = cls / p.classes_w;
    class_w = cls % p.classes_w;
    rows_h = (p.out_h - class_h + p.classes_h - 1) / p.classes_h;
    rows_w = (p.out_w - class_w + p.classes_w - 1) / p.classes_w;
    m0 = static_cast<int64_t>(tile_id % p.m_tiles) * kBM;
    rows = static_cast<int64_t>(p.batch) * rows_h * rows_w;
  }

  struct Pixel {
    int64_t n;
    int h, w;  // of the output
  };
  __device__ bool pixel(int row, Pixel& at) const {
    int64_t m = m0 + row;
    if (m >= rows) return false;
    const int64_t line = m / rows_w;
    at.w = static_cast<int>(m - line * rows_w) * p.classes_w + class_w;
    at.n = line / rows_h;
    at.h = static_cast<int>(line - at.n * rows_h) * p.classes_h + class_h;
    return true;
  }

  // Where a row's taps start in the source, in source pixels; far outside for rows beyond the end.
  struct Row {
    int64_t image;
    int h, w;
  };
  Row row_a[kRowsA];

  __device__ void start_rows() {
#pragma unroll
    for (int i = 0; i < kRowsA; ++i) {
      Pixel at;
      const bool exists = pixel(threadIdx.x / kChunks + i * kRowStep, at);
      row_a[i].image = exists ? at.n * p.in_h * p.in_w : -1;
      const int sign = p.transposed ? 1 : -1;
      const int sh = p.transposed ? 1 : p.window.stride_h,
                sw = p.transposed ? 1 : p.window.stride_w;
      row_a[i].h = exists ? at.h * sh + sign * p.window.pad_top : 0;
      row_a[i].w = exists ? at.w * sw + sign * p.window.pad_left : 0;
    }
  }

  // The source pixel of a row at a tap; false where it is padding.
  __device__ bool source_pixel(const Row& row, int r, int s, int64_t& pixel) const {
    int h = r * p.window.dilation_h, w = s * p.window.dilation_w;
    if (p.transposed) {
      h = row.h - h;
      w = row.w - w;
      const int sh = p.window.stride_h, sw = p.window.stride_w;
      if (sh != 1 || sw != 1) {
        if (h < 0 || w < 0 || h % sh != 0 || w % sw != 0) return false;
        h /= sh;
        w /= sw;
      }
    } else {
      h += row.h;
      w += row.w;
    }
    pixel = row.image + static_cast<int64_t>(h) * p.in_w + w;
    return row.image >= 0 && h >= 0 && h < p.in_h && w >= 0 && w < p.in_w;
  }

  __device__ int64_t source_index(int64_t pixel, int c) const {
    return pixel * (static_cast<int64_t>(p.in_channels) * p.groups) + group * p.in_channels + c;
  }

  __device__ char* stage_a(int stage) const { return shared + stage * kStageBytes; }
  __device__ char* stage_b(int stage) const { return stage_a(stage) + kBM * kTileRowBytes; }
  __device__ static int chunk() { return threadIdx.x % kChunks; }
  __device__ static int thread_row() { return threadIdx.x / kChunks; }

  __device__ void copy_weights(int stage, bool valid, int64_t column) const {
    const E* weight = static_cast<const E*>(p.weight);
#pragma unroll
    for (int i = 0; i < kRowsB; ++i) {
      const int row = thread_row() + i * kRowStep, k = n0 + row;
      const bool exists = valid && k < p.out_channels;
      const int64_t at =
          exists ? (static_cast<int64_t>(group) * p.out_channels + k) * p.pitch + column : 0;
      copy_async(shared_address(stage_b(stage) + swizzled(row, chunk())), weight + at, exists);
    }
  }

  __device__ int64_t weight_column(const Cursor& k) const {
    return static_cast<int64_t>(k.r * p.window.kernel_w + k.s) * p.in_channels + k.c;
  }

  __device__ void copy_source(int stage, const Cursor& k) const {
    const E* x = static_cast<const E*>(p.source.x);
#pragma unroll
    for (int i = 0; i < kRowsA; ++i) {
      int64_t at = 0;
      const bool valid = !k.done && source_pixel(row_a[i], k.r, k.s, at);
      copy_async(shared_address(stage_a(stage) + swizzled(thread_row() + i * kRowStep, chunk())),
                 x + (valid ? source_index(at, k.c) : 0), valid);
    }
  }

  // One stage's chunks of this thread, on their way through registers.
  struct Loaded {
    uint4 x[kRowsA], addend[kRowsA];
    uint32_t valid;
    int channel;
  };

  __device__ void load_source(const Cursor& k, Loaded& loaded) const {
    loaded.valid = 0;
    loaded.channel = group * p.in_channels + k.c;
#pragma unroll
    for (int i = 0; i < kRowsA; ++i) {
      int64_t at = 0;
      const bool valid = !k.done && source_pixel(row_a[i], k.r, k.s, at);
      loaded.x[i] = loaded.addend[i] = uint4{0, 0, 0, 0};
      if (!valid) continue;
      loaded.valid |= 1U << i;
      loaded.x[i] = load_chunk(p.source.x, source_index(at, k.c), sizeof(E));
      if (p.source.addend != nullptr) {
        loaded.addend[i] = load_chunk(p.source.addend, source_index(at, k.c), sizeof(E));
      }
    }
  }

  // Element by element, taps and channels in one sequence: chunk `column` of it.
  __device__ void gather_source(int column, Loaded& loaded) const {
    float v[kRowsA][kVec<E>];
    const int taps = p.window.kernel_h * p.window.kernel_w;
#pragma unroll
    for (int e = 0; e < kVec<E>; ++e) {
      const int k = column * kVec<E> + e, tap = k / p.in_channels, c = k - tap * p.in_channels;
      const int r = tap / p.window.kernel_w, s = tap - r * p.window.kernel_w;
#pragma unroll
      for (int i = 0; i < kRowsA; ++i) {
        int64_t at = 0;
        const bool valid = tap < taps && source_pixel(row_a[i], r, s, at);
        v[i][e] = valid
                      ? source_element<E>(p.source, source_index(at, c), group * p.in_channels + c)
                      : 0.0F;
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsA; ++i) loaded.x[i] = pack_chunk<E>(v[i]);
  }

  __device__ void store_source(int stage, const Loaded& loaded) const {
    ChunkAffine<E> affine;
    if (!p.gather && loaded.valid != 0) affine.load(p.source, loaded.channel);
#pragma unroll
    for (int i = 0; i < kRowsA; ++i) {
      uint4 value = loaded.x[i];
      if (!p.gather && (loaded.valid >> i & 1) != 0) {
        value = affine.apply(p.source, value, loaded.addend[i]);
      }
      *reinterpret_cast<uint4*>(stage_a(stage) + swizzled(thread_row() + i * kRowStep, chunk())) =
          value;
    }
  }

  float acc[kFragM][kFragN][4];

  // This warp's part of the tile.
  __device__ static int warp_m() { return (threadIdx.x >> 5) / WARPS_N * kFragM * 8; }
  __device__ static int warp_n() { return (threadIdx.x >> 5) % WARPS_N * kFragN * 16; }

  // ALL: every fragment of pixels has some; otherwise only the first `fragments`.
  template <bool ALL>
  __device__ void multiply(int stage, int fragments) {
    const int lane = threadIdx.x & 31;
    const uint32_t pixels = shared_address(stage_a(stage)),
                   weights = shared_address(stage_b(stage));
#pragma unroll
    for (int step = 0; step < kChunks; step += 2) {
      uint32_t w[kFragN][4];
#pragma unroll
      for (int n = 0; n < kFragN; ++n) {  // matrices: rows 0-7, rows 8-15 of a chunk, then the next
        load_matrices(w[n],
                      weights + swizzled(warp_n() + n * 16 + (lane & 15), step + (lane >> 4)));
      }
#pragma unroll
      for (int m = 0; m < kFragM; m += 2) {  // matrices: rows 0-7 of both chunks, rows 8-15 of both
        if (!ALL && m >= fragments) break;
        uint32_t x[4];
        const int row = warp_m() + m * 8 + (lane >> 4) * 8 + (lane & 7);
        load_matrices(x, pixels + swizzled(row, step + ((lane >> 3) & 1)));
#pragma unroll
        for (int n = 0; n < kFragN; ++n) mma(acc[m][n], w[n], x[0], x[1], E{});
        if (!ALL && m + 1 >= fragments) break;
#pragma unroll
        for (int n = 0; n < kFragN; ++n) mma(acc[m + 1][n], w[n], x[2], x[3], E{});
      }
    }
  }

  // Stages of the reduction: all taps that this class's pixels have.
  __device__ int stage_count(int base_h, int base_w) const {
    int taps_h = 0, taps_w = 0;
    for (int r = 0; r < p.window.kernel_h; ++r) {
      taps_h += !Cursor::misses(p, base_h, r * p.window.dilation_h, p.classes_h);
    }
    for (int s = 0; s < p.window.kernel_w; ++s) {
      taps_w += !Cursor::misses(p, base_w, s * p.window.dilation_w, p.classes_w);
    }
    constexpr int kElements = kTileRowBytes / static_cast<int>(sizeof(E));
    return (taps_h * taps_w * p.in_channels + kElements - 1) / kElements;
  }

  __device__ void run() {
    const int base_h = class_h + p.window.pad_top, base_w = class_w + p.window.pad_left;
    const int stages = m0 < rows ? stage_count(base_h, base_w) : 0;
    const int fragments = static_cast<int>(min((rows - m0 - warp_m() + 7) / 8, int64_t{kFragM}));
    constexpr int kStep = kChunks * kVec<E>;
    start_rows();
#pragma unroll
    for (int m = 0; m < kFragM; ++m) {
#pragma unroll
      for (int n = 0; n < kFragN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[m][n][i] = 0.0F;
      }
    }
    Cursor k;  // of the next stage to copy
    k.start(p, base_h, base_w, chunk() * kVec<E>);
    const auto copy_stage = [&](int index) {
      if (index < stages) {
        const int slot = index % kStages;
        if constexpr (ASYNC) {
          copy_source(slot, k);
          copy_weights(slot, !k.done, weight_column(k));
          k.c += kStep;
          k.wrap(p, base_h, base_w);
        } else {
          const int64_t column =
              p.gather ? (index * kChunks + chunk()) * kVec<E> : weight_column(k);
          copy_weights(slot, p.gather ? column < p.pitch : !k.done, column);
          k.c += kStep;
          k.wrap(p, base_h, base_w);
        }
      }
      copy_commit();  // a group a stage, empty ones too, so that the wait below can count
    };
    for (int index = 0; index < kStages - 1; ++index) copy_stage(index);
    const auto multiply_stage = [&](int index) {
      if (kWidest || fragments == kFragM) return multiply<true>(index % kStages, kFragM);
      multiply<false>(index % kStages, fragments);
    };

    if constexpr (ASYNC) {
      for (int index = 0; index < stages; ++index) {
        copy_wait<kStages - 2>();
        __syncthreads();
        copy_stage(index + kStages - 1);
        multiply_stage(index);
      }
    } else {
      Cursor source_k;  // runs apart from the weights', which are further ahead
      source_k.start(p, base_h, base_w, chunk() * kVec<E>);
      Loaded loaded;
      const auto load = [&](int index) {
        if (index >= stages) return;
        if (p.gather) return gather_source(index * kChunks + chunk(), loaded);
        load_source(source_k, loaded);
        source_k.c += kStep;
        source_k.wrap(p, base_h, base_w);
      };
      load(0);
      if (stages > 0) store_source(0, loaded);
      load(1);
      for (int index = 0; index < stages; ++index) {
        copy_wait<kStages - 2>();
        __syncthreads();
        copy_stage(index + kStages - 1);
        if (index + 1 < stages) store_source((index + 1) % kStages, loaded);
        load(index + 2);
        multiply_stage(index);
      }
    }
    copy_wait<0>();
    __syncthreads();  // the stages' memory becomes the staged tile's
    finish();
  }

  __device__ void finish() {
    Tail tail(shared, p.epilogue, group * p.out_channels + n0, p.out_channels - n0);
#pragma unroll
    for (int m = 0; m < kFragM; ++m) {
#pragma unroll
      for (int n = 0; n < kFragN; ++n) {
        stage_transposed<kBN>(tail.tile, warp_m() + m * 8, warp_n() + n * 16, acc[m][n]);
      }
    }
    tail.template run<!ASYNC>(tile_id, [&](int row) -> int64_t {
      Pixel at;
      if (!pixel(row, at)) return -1;
      return (at.n * p.out_h + at.h) * p.out_w + at.w;
    });
  }
};

}  // namespace fastres::cuda

// warps x fragments of 8 pixels, and warps x fragments of 16 output channels. Two blocks at a time
// share a multiprocessor's registers, but eight warps of float32 want them all.
#define FASTRES_CONV_GEMM(NAME, TYPE, WARPS_M, WARPS_N, FRAGMENTS_M, FRAGMENTS_N, ASYNC)        \
  FASTRES_KERNEL(                                                                               \
      NAME, WARPS_M * WARPS_N * 32, sizeof(TYPE) == 4 && WARPS_M * WARPS_N == 8 ? 1 : 2,        \
      ConvGemmParams,                                                                           \
      (fastres::cuda::ConvGemm<TYPE, WARPS_M, WARPS_N, FRAGMENTS_M, FRAGMENTS_N, ASYNC>(params, \
                                                                                        shared) \
           .run()))

// The weight gradient as a matrix product over pixels: output channels x (tap, input channel). Both
// operands go through registers, where their affines are applied, one step ahead. Blocks split the
// pixels, and so do a block's parts; reduce_splits adds up what the blocks leave.

#pragma once

#include "../device/registry.cuh"
#include "../device/source.cuh"
#include "../device/tensor_core.cuh"

namespace fastres::cuda {

template <class E>
struct ConvWgrad {
  static constexpr int kV = kVec<E>;
  static constexpr int kPixels = wgrad_pixels(sizeof(E));
  static constexpr int kStride = kWgradParts * kPixels;  // from one step of a part to its next
  static constexpr int kThreads = kWgradThreads / kWgradParts;  // of a part
  static constexpr int kChunks = kWgradTile / kV;               // of a pixel's row
  static constexpr int kRowStep = kThreads / kChunks;           // rows apart of one thread's chunks
  static constexpr int kRows = kPixels / kRowStep;
  static constexpr int kOperandBytes = kPixels * kWgradTile * static_cast<int>(sizeof(E));
  static_assert(4 * kOperandBytes == kWgradPartBytes, "two buffers of two operands");

  const WgradParams& p;
  char* shared;
  int group, k0, column0;
  int64_t split, begin, end;  // of the pixels
  int tap_h, tap_w, channel;  // of this thread's columns, in source pixels
  bool column_exists, k_exists;
  ChunkAffine<E> gradient_affine, source_affine_;

  __device__ static int part() { return threadIdx.x / kThreads; }
  __device__ static int thread() { return threadIdx.x % kThreads; }
  __device__ static int warp() { return thread() >> 5; }
  __device__ static int chunk() { return thread() % kChunks; }
  __device__ static int thread_row() { return thread() / kChunks; }

  // Rows that a fragment reads together have their chunks in different banks.
  __device__ static uint32_t offset(int row, int chunk) {
    const int turn = sizeof(E) == 2 ? row & 7 : (row & 3) << 1;
    return (row * kChunks + (chunk ^ turn)) * kChunkBytes;
  }

  __device__ ConvWgrad(const WgradParams& params, char* memory) : p(params), shared(memory) {
    int64_t id = blockIdx.x;
    column0 = static_cast<int>(id % p.n_tiles) * kWgradTile;
    id /= p.n_tiles;
    k0 = static_cast<int>(id % p.m_tiles) * kWgradTile;
    id /= p.m_tiles;
    group = static_cast<int>(id % p.groups);
    split = id / p.groups;
    const int64_t pixels = static_cast<int64_t>(p.batch) * p.out_h * p.out_w;
    begin = split * p.pixels_per_split;
    end = begin + p.pixels_per_split < pixels ? begin + p.pixels_per_split : pixels;
    const int column = column0 + chunk() * kV, tap = column / p.in_channels;
    column_exists = tap < p.window.kernel_h * p.window.kernel_w;
    k_exists = k0 + chunk() * kV < p.out_channels;
    channel = column - tap * p.in_channels;
    tap_h = tap / p.window.kernel_w * p.window.dilation_h - p.window.pad_top;
    tap_w = tap % p.window.kernel_w * p.window.dilation_w - p.window.pad_left;
    if (p.gather) return;
    if (k_exists) gradient_affine.load(p.gradient, group * p.out_channels + k0 + chunk() * kV);
    if (column_exists) source_affine_.load(p.source, group * p.in_channels + channel);
  }

  // An output pixel that moves on by kStride.
  struct Pixel {
    int64_t index;
    int64_t n;
    int h, w;
  };
  Pixel pixel[kRows];
  int step_n, step_h, step_w;

  __device__ void start_pixels() {
    const int64_t area = static_cast<int64_t>(p.out_h) * p.out_w;
    step_n = static_cast<int>(kStride / area);
    step_h = static_cast<int>(kStride % area / p.out_w);
    step_w = static_cast<int>(kStride % area % p.out_w);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      Pixel& at = pixel[i];
      at.index = begin + part() * kPixels + thread_row() + i * kRowStep;
      at.n = at.index / area;
      const int64_t rest = at.index - at.n * area;
      at.h = static_cast<int>(rest / p.out_w);
      at.w = static_cast<int>(rest - static_cast<int64_t>(at.h) * p.out_w);
    }
  }
  __device__ void advance(Pixel& at) const {
    at.index += kStride;
    at.w += step_w;
    int carry = at.w >= p.out_w;
    at.w -= carry ? p.out_w : 0;
    at.h += step_h + carry;
    carry = at.h >= p.out_h;
    at.h -= carry ? p.out_h : 0;
    at.n += step_n + carry;
  }

  struct Loaded {
    uint4 gradient[kRows], gradient_addend[kRows], source[kRows], source_addend[kRows];
    uint32_t gradient_valid, source_valid;
  };

  __device__ bool source_pixel(const Pixel& at, int dh, int dw, int64_t& index) const {
    const int h = at.h * p.window.stride_h + dh, w = at.w * p.window.stride_w + dw;
    index = (at.n * p.in_h + h) * p.in_w + w;
    return h >= 0 && h < p.in_h && w >= 0 && w < p.in_w;
  }

  __device__ void load(Loaded& loaded) {
    loaded.gradient_valid = loaded.source_valid = 0;
    const int64_t k_total = static_cast<int64_t>(p.out_channels) * p.groups;
    const int64_t c_total = static_cast<int64_t>(p.in_channels) * p.groups;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Pixel& at = pixel[i];
      loaded.gradient[i] = loaded.gradient_addend[i] = uint4{0, 0, 0, 0};
      loaded.source[i] = loaded.source_addend[i] = uint4{0, 0, 0, 0};
      if (at.index < end) {
        if (p.gather) {
          gather(at, loaded.gradient[i], loaded.source[i]);
        } else {
          load_row(at, k_total, c_total, i, loaded);
        }
      }
      advance(pixel[i]);
    }
  }

  __device__ void load_row(const Pixel& at, int64_t k_total, int64_t c_total, int i,
                           Loaded& loaded) const {
    if (k_exists) {
      const int64_t index = at.index * k_total + group * p.out_channels + k0 + chunk() * kV;
      loaded.gradient_valid |= 1U << i;
      loaded.gradient[i] = load_chunk(p.gradient.x, index, sizeof(E));
      if (p.gradient.addend != nullptr) {
        loaded.gradient_addend[i] = load_chunk(p.gradient.addend, index, sizeof(E));
      }
    }
    int64_t index;
    if (column_exists && source_pixel(at, tap_h, tap_w, index)) {
      index = index * c_total + group * p.in_channels + channel;
      loaded.source_valid |= 1U << i;
      loaded.source[i] = load_chunk(p.source.x, index, sizeof(E));
      if (p.source.addend != nullptr) {
        loaded.source_addend[i] = load_chunk(p.source.addend, index, sizeof(E));
      }
    }
  }

  // Element by element, where channels are no whole chunks.
  __device__ void gather(const Pixel& at, uint4& gradient, uint4& source) const {
    float g[kV], x[kV];
    const int taps = p.window.kernel_h * p.window.kernel_w;
#pragma unroll
    for (int e = 0; e < kV; ++e) {
      const int k = k0 + chunk() * kV + e, k_channel = group * p.out_channels + k;
      g[e] = k < p.out_channels
                 ? source_element<E>(
                       p.gradient,
                       at.index * (static_cast<int64_t>(p.out_channels) * p.groups) + k_channel,
                       k_channel)
                 : 0.0F;
      const int column = column0 + chunk() * kV + e, tap = column / p.in_channels;
      const int c = group * p.in_channels + column - tap * p.in_channels;
      int64_t index;
      const bool valid =
          tap < taps &&
          source_pixel(at, tap / p.window.kernel_w * p.window.dilation_h - p.window.pad_top,
                       tap % p.window.kernel_w * p.window.dilation_w - p.window.pad_left, index);
      x[e] = valid ? source_element<E>(
                         p.source, index * (static_cast<int64_t>(p.in_channels) * p.groups) + c, c)
                   : 0.0F;
    }
    gradient = pack_chunk<E>(g);
    source = pack_chunk<E>(x);
  }

  __device__ char* operand(int buffer, int which) const {
    return shared + part() * kWgradPartBytes + (buffer * 2 + which) * kOperandBytes;
  }

  __device__ void store(int buffer, const Loaded& loaded) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      uint4 g = loaded.gradient[i], x = loaded.source[i];
      if ((loaded.gradient_valid >> i & 1) != 0) {
        g = gradient_affine.apply(p.gradient, g, loaded.gradient_addend[i]);
      }
      if ((loaded.source_valid >> i & 1) != 0) {
        x = source_affine_.apply(p.source, x, loaded.source_addend[i]);
      }
      const uint32_t at = offset(thread_row() + i * kRowStep, chunk());
      *reinterpret_cast<uint4*>(operand(buffer, 0) + at) = g;
      *reinterpret_cast<uint4*>(operand(buffer, 1) + at) = x;
    }
  }

  // A warp has 32 x 32 of the tile.
  float acc[2][4][4] = {};

  __device__ static uint32_t word(const char* base, int row, int column) {
    return *reinterpret_cast<const uint32_t*>(base + offset(row, column / kV) +
                                              column % kV * sizeof(E));
  }

  __device__ void multiply(int buffer) {
    const int lane = threadIdx.x & 31;
    const int row_m = (warp() >> 1) * 32, row_n = (warp() & 1) * 32;
    const char *a_base = operand(buffer, 0), *b_base = operand(buffer, 1);
    constexpr int kStep = sizeof(E) == 2 ? 16 : 8;
#pragma unroll
    for (int k = 0; k < kPixels; k += kStep) {
      uint32_t b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if constexpr (sizeof(E) == 2) {
          const int row = k + ((lane >> 3) & 1) * 8 + (lane & 7);
          load_matrices_transposed(
              b[n], shared_address(b_base + offset(row, row_n / 8 + n * 2 + (lane >> 4))));
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            b[n][i] = word(b_base, k + (i & 1) * 4 + (lane & 3),
                           row_n + n * 16 + (i >> 1) * 8 + (lane >> 2));
          }
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        uint32_t a[4];
        if constexpr (sizeof(E) == 2) {
          const int row = k + (lane >> 4) * 8 + (lane & 7);
          load_matrices_transposed(
              a, shared_address(a_base + offset(row, row_m / 8 + m * 2 + ((lane >> 3) & 1))));
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            a[i] = word(a_base, k + (i >> 1) * 4 + (lane & 3),
                        row_m + m * 16 + (i & 1) * 8 + (lane >> 2));
          }
        }
#pragma unroll
        for (int n = 0; n < 4; ++n)
          mma(acc[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], E{});
      }
    }
  }

  __device__ void run() {
    start_pixels();
    Loaded loaded;
    load(loaded);
    int buffer = 0;
    for (int64_t at = begin; at < end; at += kStride) {
      store(buffer, loaded);
      __syncthreads();
      load(loaded);
      multiply(buffer);
      buffer ^= 1;
    }
    add_parts();
    if (part() == 0) write();
  }

  // The first part's sums become everybody's, added in the order of the parts.
  __device__ void add_parts() {
    float* sums = reinterpret_cast<float*>(shared);  // [fragment values][threads of a part]
    for (int other = 1; other < kWgradParts; ++other) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if (part() == other) sums[i * kThreads + thread()] = acc[i / 16][i / 4 % 4][i % 4];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if (part() == 0) acc[i / 16][i / 4 % 4][i % 4] += sums[i * kThreads + thread()];
      }
    }
  }

  __device__ void write() const {
    const int lane = threadIdx.x & 31;
    const int columns = p.window.kernel_h * p.window.kernel_w * p.in_channels;
    const int64_t rows = static_cast<int64_t>(p.out_channels) * p.groups;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int k = k0 + (warp() >> 1) * 32 + m * 16 + half * 8 + (lane >> 2);
          const int column = column0 + (warp() & 1) * 32 + n * 8 + 2 * (lane & 3);
          if (k >= p.out_channels || column >= columns) continue;
          float* to = p.partial +
                      (split * rows + static_cast<int64_t>(group) * p.out_channels + k) * columns +
                      column;
          const float2 pair = {acc[m][n][2 * half], acc[m][n][2 * half + 1]};
          if (columns % 2 == 0) {
            *reinterpret_cast<float2*>(to) = pair;
          } else {
            to[0] = pair.x;
            if (column + 1 < columns) to[1] = pair.y;
          }
        }
      }
    }
  }
};

}  // namespace fastres::cuda

// What becomes of a tile of float32 results: staged in shared memory, so that global memory is
// read and written in whole 16-byte chunks whatever the fragments look like.

#pragma once

#include "activation.cuh"
#include "element.cuh"

namespace fastres::cuda {

// Position in a staged tile. Four neighbouring rows go to different banks, and so do every second
// of eight.
template <int BN>
__device__ inline int staged(int row, int column) {
  return row * BN + (((column >> 3) ^ ((row ^ row >> 2) & 3)) << 3) + (column & 7);
}

// The accumulators of an m16n8 fragment whose first row and column these are.
template <int BN>
__device__ inline void stage_fragment(float* tile, int row, int column, const float (&d)[4]) {
  const int lane = threadIdx.x & 31;
  row += lane >> 2;
  column += 2 * (lane & 3);
  *reinterpret_cast<float2*>(tile + staged<BN>(row, column)) = {d[0], d[1]};
  *reinterpret_cast<float2*>(tile + staged<BN>(row + 8, column)) = {d[2], d[3]};
}

// The same of a fragment of 16 columns by 8 rows.
template <int BN>
__device__ inline void stage_transposed(float* tile, int row, int column, const float (&d)[4]) {
  const int lane = threadIdx.x & 31;
  row += 2 * (lane & 3);
  column += lane >> 2;
  tile[staged<BN>(row, column)] = d[0];
  tile[staged<BN>(row + 1, column)] = d[1];
  tile[staged<BN>(row, column + 8)] = d[2];
  tile[staged<BN>(row + 1, column + 8)] = d[3];
}

template <class E, int BN>
__device__ inline void read_staged(const float* tile, int row, int column, float (&v)[kVec<E>]) {
  if constexpr (kVec<E> == 4) {
    const float4 four = *reinterpret_cast<const float4*>(tile + staged<BN>(row, column));
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  } else {
    // Half of the lanes start with the second half: all eight of a phase hit different banks.
    const int second = column & 32 ? 4 : 0;
    const float* at = tile + staged<BN>(row, column);
    const float4 a = *reinterpret_cast<const float4*>(at + second);
    const float4 b = *reinterpret_cast<const float4*>(at + (second ^ 4));
    const float4 low = second != 0 ? b : a, high = second != 0 ? a : b;
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  }
}

template <class E, int BM, int BN, int THREADS>
struct TileEpilogue {
  static constexpr int kColumns = BN / kVec<E>;  // chunks across
  static constexpr int kWarps = THREADS / 32;
  static constexpr int kParts = THREADS / BN;
  static_assert(THREADS % kColumns == 0 && THREADS % BN == 0, "threads keep their columns");

  // The staged tile, its rows' pixels, and room for sums across threads.
  static constexpr int kBytes = epilogue_bytes(BM, BN, THREADS);

  float* tile;
  int64_t* pixels;
  float* sums;
  const Epilogue& e;
  int channel0;  // of the tile's first column
  int columns;   // that exist
  bool whole;    // chunks are whole and aligned

  __device__ TileEpilogue(void* shared, const Epilogue& epilogue, int first, int count)
      : tile(static_cast<float*>(shared)),
        pixels(reinterpret_cast<int64_t*>(tile + BM * BN)),
        sums(reinterpret_cast<float*>(pixels + BM)),
        e(epilogue),
        channel0(first),
        columns(count < BN ? count : BN),
        whole(epilogue.channels % kVec<E> == 0 && first % kVec<E> == 0 && columns % kVec<E> == 0) {}

  // With all fragments staged: `pixel_of(row)` is the row's place in the output, or negative.
  template <bool TRAINING, class PixelOf>
  __device__ void run(int tile_id, const PixelOf& pixel_of) {
    for (int row = threadIdx.x; row < BM; row += THREADS) pixels[row] = pixel_of(row);
    __syncthreads();
    if constexpr (TRAINING) {
      if (e.kind == EpilogueKind::statistics) statistics(tile_id);
      if (e.kind == EpilogueKind::input_gradient) return input_gradient(tile_id);
    }
    inference();
  }

 private:
  __device__ int column() const { return threadIdx.x % kColumns * kVec<E>; }
  __device__ int first_row() const { return threadIdx.x / kColumns; }
  static constexpr int kRowStep = THREADS / kColumns;

  __device__ void read(const void* from, int64_t at, float (&v)[kVec<E>]) const {
    const E* p = static_cast<const E*>(from) + at;
    if (whole) return unpack_chunk<E>(__ldg(reinterpret_cast<const uint4*>(p)), v);
#pragma unroll
    for (int i = 0; i < kVec<E>; ++i) v[i] = column() + i < columns ? to_float(p[i]) : 0.0F;
  }

  __device__ void write(int64_t at, const float (&v)[kVec<E>]) const {
    E* p = static_cast<E*>(e.out) + at;
    if (whole) {
      *reinterpret_cast<uint4*>(p) = pack_chunk<E>(v);
      return;
    }
#pragma unroll
    for (int i = 0; i < kVec<E>; ++i) {
      if (column() + i < columns) p[i] = from_float<E>(v[i]);
    }
  }

  // This thread's columns of a per-channel vector.
  __device__ void vector(const float* from, float missing, float (&v)[kVec<E>]) const {
    if (from != nullptr && whole && column() < columns) {
      return load_floats(from + channel0 + column(), v);
    }
#pragma unroll
    for (int i = 0; i < kVec<E>; ++i) {
      v[i] = from != nullptr && column() + i < columns ? from[channel0 + column() + i] : missing;
    }
  }

  __device__ void inference() const {
    if (column() >= columns) return;
    float shift[kVec<E>];
    vector(e.shift, 0.0F, shift);
#pragma unroll 4
    for (int row = first_row(); row < BM; row += kRowStep) {
      if (pixels[row] < 0) continue;
      const int64_t at = pixels[row] * e.channels + channel0 + column();
      float v[kVec<E>];
      read_staged<E, BN>(tile, row, column(), v);
#pragma unroll
      for (int i = 0; i < kVec<E>; ++i) v[i] += shift[i];
      if (e.residual != nullptr) {
        float r[kVec<E>];
        read(e.residual, at, r);
#pragma unroll
        for (int i = 0; i < kVec<E>; ++i) v[i] += r[i];
      }
#pragma unroll
      for (int i = 0; i < kVec<E>; ++i) v[i] = apply_act(v[i], e.act, e.act_slope);
      write(at, v);
    }
  }

  // Sum over the threads that share a column, in a fixed order; valid where threadIdx.x < BN.
  __device__ float over_parts(float v) const {
    sums[threadIdx.x] = v;
    __syncthreads();
    float total = 0.0F;
#pragma unroll
    for (int part = 0; part < kParts; ++part) total += sums[part * BN + threadIdx.x % BN];
    __syncthreads();
    return total;
  }

  // Two passes over the tile: the deviations from its own mean lose nothing.
  __device__ void statistics(int tile_id) const {
    constexpr int kRows = BM / kParts;
    const int col = threadIdx.x % BN, row0 = threadIdx.x / BN * kRows;
    // Sums of differences from some value of the column, the first, which is never missing.
    const float pivot = tile[staged<BN>(0, col)];
    float sum = 0.0F, rows = 0.0F;
    for (int row = row0; row < row0 + kRows; ++row) {
      if (pixels[row] < 0) continue;
      rows += 1.0F;
      sum += tile[staged<BN>(row, col)] - pivot;
    }
    const float count = over_parts(rows);
    const float mean = pivot + over_parts(sum) / (count > 0.0F ? count : 1.0F);
    float m2 = 0.0F;
    for (int row = row0; row < row0 + kRows; ++row) {
      if (pixels[row] < 0) continue;
      const float d = tile[staged<BN>(row, col)] - mean;
      m2 += d * d;
    }
    m2 = over_parts(m2);
    if (threadIdx.x < BN && col < columns) {
      reinterpret_cast<float2*>(e.partial)[int64_t{tile_id} * e.channels + channel0 + col] = {mean,
                                                                                              m2};
    }
    if (threadIdx.x == 0) e.counts[tile_id] = static_cast<int32_t>(count);
  }

  __device__ void input_gradient(int tile_id) const {
    float mean[kVec<E>], scale[kVec<E>], bias[kVec<E>], sum[kVec<E>] = {}, centred[kVec<E>] = {};
    vector(e.mean, 0.0F, mean);
    vector(e.scale, 1.0F, scale);
    vector(e.bias, 0.0F, bias);
    for (int row = first_row(); row < BM && column() < columns; row += kRowStep) {
      if (pixels[row] < 0) continue;
      const int64_t at = pixels[row] * e.channels + channel0 + column();
      float g[kVec<E>], x[kVec<E>] = {}, shortcut[kVec<E>] = {};
      read_staged<E, BN>(tile, row, column(), g);
      if (e.x != nullptr) read(e.x, at, x);
      if (e.shortcut != nullptr) read(e.shortcut, at, shortcut);
      if (e.residual != nullptr) {
        float r[kVec<E>];
        read(e.residual, at, r);
#pragma unroll
        for (int i = 0; i < kVec<E>; ++i) g[i] += r[i];
      }
#pragma unroll
      for (int i = 0; i < kVec<E>; ++i) {
        const float deviation = x[i] - mean[i];
        const float before = deviation * scale[i] + bias[i] + shortcut[i];
        g[i] = act_grad(g[i], before, e.act, e.act_slope);
        sum[i] += g[i];
        centred[i] += g[i] * deviation;
        if (e.shortcut == nullptr) g[i] *= scale[i];
      }
      if (e.out != nullptr) write(at, g);
    }
    if (e.partial == nullptr) return;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int i = 0; i < kVec<E>; ++i) {
#pragma unroll
      for (int offset = kColumns; offset < 32; offset *= 2) {
        sum[i] += __shfl_xor_sync(0xffffffffU, sum[i], offset);
        centred[i] += __shfl_xor_sync(0xffffffffU, centred[i], offset);
      }
      if (lane < kColumns) {
        float* to = sums + (warp * BN + column() + i) * 2;
        to[0] = sum[i];
        to[1] = centred[i];
      }
    }
    __syncthreads();
    if (threadIdx.x < columns) {
      float2 total = {0.0F, 0.0F};
      for (int w = 0; w < kWarps; ++w) {
        const float* from = sums + (w * BN + threadIdx.x) * 2;
        total.x += from[0];
        total.y += from[1];
      }
      reinterpret_cast<float2*>(e.partial)[int64_t{tile_id} * e.channels + channel0 + threadIdx.x] =
          total;
    }
  }
};

}  // namespace fastres::cuda

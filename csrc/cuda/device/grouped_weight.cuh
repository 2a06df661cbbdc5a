// Eight output channels of a grouped 3x3 on tensor cores, their weights in registers.
//
// An instruction multiplies 16 pixels by 8 output channels over two chunks of the reduction (tap,
// input chunk). Eight output channels of narrow groups need the same eight input channels, so
// several groups share an instruction, block-diagonally: of 4 channels a group half of it is zeros.

#pragma once

#include "patch.cuh"

namespace fastres::cuda {

constexpr int kGroupedTaps = 9;

template <class E, int WIDTH>
struct GroupedWeight {
  // Input chunks that eight output channels read, at one tap; and instructions for all taps.
  static constexpr int kInChunks = (WIDTH > 8 ? WIDTH : 8) / kVec<E>;
  static constexpr int kSteps = (kGroupedTaps * kInChunks + 1) / 2;

  // Of output channels from `first`, a multiple of 8, from a matrix [channels][pitch].
  __device__ static void load(uint32_t (&weight)[kSteps][2], const void* data, int pitch, int first,
                              int channels) {
    const int k = first + ((threadIdx.x & 31) >> 2);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      weight[step][0] = word(data, pitch, k, channels, 2 * step);
      weight[step][1] = word(data, pitch, k, channels, 2 * step + 1);
    }
  }

  // The first chunk of the patch that eight channels from `column` of it read.
  __device__ static int first_chunk(int column) {
    return column / (WIDTH > 8 ? WIDTH : 8) * kInChunks;
  }

  // What this lane gives the address of at a step: a pixel of the patch, for output pixels that
  // start at its first, and a chunk, from the first one.
  struct Operand {
    int pixel, chunk;
  };
  __device__ static Operand operand(int step, const PatchLayout& layout, const Window& window) {
    const int lane = threadIdx.x & 31;
    const int row = (lane & 15) / kGroupedTileWidth * window.stride_h * layout.pitch() +
                    lane % kGroupedTileWidth;
    // Lanes of the upper half give the addresses of the second chunk; beyond the last one they
    // repeat it, times zero.
    int q = 2 * step + (lane >> 4);
    if (q >= kGroupedTaps * kInChunks) q = kGroupedTaps * kInChunks - 1;
    const int tap = q / kInChunks, r = tap / 3, s = tap - 3 * r;
    return {row + r * window.dilation_h * layout.pitch() + layout.column(s * window.dilation_w),
            q % kInChunks};
  }

 private:
  // A word of the weights: two 16-bit values or one of 32 bits, of output channel `k`, chunk q of
  // the reduction. Zero outside of the channel's own group.
  __device__ static uint32_t word(const void* data, int pitch, int k, int channels, int q) {
    constexpr int kWordElements = 4 / static_cast<int>(sizeof(E));
    const int tap = q / kInChunks;
    int c = q % kInChunks * kVec<E> + (threadIdx.x & 3) * kWordElements;
    if (tap >= kGroupedTaps || k >= channels) return 0;
    if (WIDTH < 8) {
      if (c / WIDTH != k % 8 / WIDTH) return 0;
      c %= WIDTH;
    }
    const E* row = static_cast<const E*>(data) + static_cast<int64_t>(k) * pitch;
    return __ldg(reinterpret_cast<const uint32_t*>(row + tap * WIDTH + c));
  }
};

}  // namespace fastres::cuda

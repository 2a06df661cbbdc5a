// A patch of a source in shared memory: kGroupedBytes of channels of a rectangle of pixels, each
// loaded once, the affine applied on the way.

#pragma once

#include "source.cuh"
#include "tensor_core.cuh"

namespace fastres::cuda {

// Where a patch's pixels lie. Columns that a stride separates are neighbours, so that eight output
// pixels of a row read eight neighbours, whatever the stride.
struct PatchLayout {
  int stride_w, part;  // columns of equal remainder by stride_w

  __device__ PatchLayout(int width, int stride)
      : stride_w(stride), part((width + stride - 1) / stride) {}
  __device__ int pitch() const { return stride_w * part; }
  __device__ int column(int w) const { return w % stride_w * part + w / stride_w; }
  __device__ static uint32_t offset(int pixel, int chunk) {
    return pixel * kGroupedBytes + ((chunk ^ (pixel & 7)) << 4);
  }
};

struct PatchSource {
  const Source& source;
  int64_t image;  // the first pixel's index
  int in_h, in_w;
  int upsample_h, upsample_w;
  int channels;  // of the whole tensor
};

// Pixels (h0 + i, w0 + j) of the source for 0 <= i < height, 0 <= j < width, channels from
// channel0.
template <class E, int THREADS>
__device__ void load_patch(char* shared, const PatchLayout& layout, const PatchSource& from, int h0,
                           int w0, int height, int width, int channel0) {
  constexpr int kChunks = kGroupedBytes / kChunkBytes;
  const int chunk = threadIdx.x % kChunks, channel = channel0 + chunk * kVec<E>;
  const bool plain = from.source.plain(), exists = channel < from.channels;
  ChunkAffine<E> affine;
  if (!plain && exists) affine.load(from.source, channel);
#pragma unroll 4
  for (int pixel = threadIdx.x / kChunks; pixel < height * width; pixel += THREADS / kChunks) {
    const int i = pixel / width, j = pixel - i * width;
    int h = h0 + i, w = w0 + j;
    bool valid = exists && h >= 0 && w >= 0;
    if (from.upsample_h != 1 || from.upsample_w != 1) {
      valid = valid && h % from.upsample_h == 0 && w % from.upsample_w == 0;
      h /= from.upsample_h;
      w /= from.upsample_w;
    }
    valid = valid && h < from.in_h && w < from.in_w;
    const int64_t at =
        valid ? (from.image + static_cast<int64_t>(h) * from.in_w + w) * from.channels + channel
              : 0;
    char* to = shared + PatchLayout::offset(i * layout.pitch() + layout.column(j), chunk);
    if (plain) {
      copy_async(shared_address(to), static_cast<const E*>(from.source.x) + at, valid);
      continue;
    }
    uint4 value = {0, 0, 0, 0};
    if (valid) {
      uint4 addend = {0, 0, 0, 0};
      value = load_chunk(from.source.x, at, sizeof(E));
      if (from.source.addend != nullptr) addend = load_chunk(from.source.addend, at, sizeof(E));
      value = affine.apply(from.source, value, addend);
    }
    *reinterpret_cast<uint4*>(to) = value;
  }
  copy_commit();
}

}  // namespace fastres::cuda

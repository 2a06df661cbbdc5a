// Views of tensors and of float32 bands, as the CPU kernels see them.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../../geometry.h"
#include "../../packed_weight.h"
#include "../microkernels.h"
#include "../runtime/parallel.h"
#include "../runtime/scratch.h"
#include "../split.h"

namespace fastres::cpu {

// A 4-D tensor of any strides, in elements.
struct Image {
  void* data = nullptr;
  StorageType type = StorageType::float32;
  int64_t batch = 0, channels = 0, height = 0, width = 0;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;

  int64_t element_bytes() const { return cpu::element_bytes(type); }
  char* at(int64_t n, int64_t h, int64_t w) const {
    return static_cast<char*>(data) +
           (n * stride_n + h * stride_h + w * stride_w) * element_bytes();
  }
  bool channels_adjacent() const { return stride_c == 1 || channels == 1; }
  // All pixels of all images at one distance from each other.
  bool pixels_evenly_spaced() const {
    return channels_adjacent() && (height == 1 || stride_h == width * stride_w) &&
           (batch == 1 || stride_n == height * width * stride_w);
  }
  bool is_float32_nhwc() const { return type == StorageType::float32 && channels_adjacent(); }
  bool is_bfloat16_nhwc() const { return type == StorageType::bfloat16 && channels_adjacent(); }
  // Whether a kernel of so many columns that takes values of `stored` reads it as it lies: those of
  // several have to be adjacent, where they are taken for one of more channels.
  bool is_band_for(int64_t columns, StorageType stored = StorageType::float32) const {
    return type == stored && channels_adjacent() && (columns == 1 || stride_w == channels);
  }
};

// Every step-th pixel.
Image strided_image(Image image, Extent step);

// A 1x1 convolution with stride 1 has no image borders: the rows of all images become those of one.
// `images` are those of the convolution's input and output; those without data are left out.
void join_images(ConvGeometry& geometry, std::vector<Image*> images);

// Rows of pixels whose channels are adjacent.
template <class T>
struct PixelRows {
  T* data = nullptr;
  ptrdiff_t row_stride = 0;
  ptrdiff_t pixel_stride = 0;
};
using Band = PixelRows<float>;
using Bfloat16Band = PixelRows<Bfloat16>;

// Rows [row, ...) of an image of float32 pixels, where they lie.
inline Band direct_band(const Image& image, int64_t n, int64_t row) {
  return {reinterpret_cast<float*>(image.at(n, row, 0)), image.stride_h, image.stride_w};
}
// The same of bfloat16 pixels.
inline Bfloat16Band direct_band16(const Image& image, int64_t n, int64_t row) {
  return {reinterpret_cast<Bfloat16*>(image.at(n, row, 0)), image.stride_h, image.stride_w};
}

// Floats between the pixels of a band in scratch memory. Pixels of many channels a power of two
// apart would fall into a corner of the level-1 cache.
inline int64_t band_pixel_stride(int64_t channels) {
  return channels <= 64 ? channels : channels + kChannelBlock;
}
// Vectors may read beyond the last pixel's channels.
inline int64_t band_floats(int64_t pixels, int64_t channels) {
  return pixels * band_pixel_stride(channels) + kChannelBlock;
}

// Rows [row, row + rows) of image n, with columns [-left, width + right).
struct PaddedRows {
  int64_t n = 0;
  int64_t row = 0;
  int64_t rows = 0;
  int64_t left = 0;
  int64_t right = 0;
};

// What output rows [row, row + rows) of image n read.
inline PaddedRows padded_rows(const ConvGeometry& g, int64_t n, int64_t row, int64_t rows) {
  return {n, row * g.stride.h - g.padding.top, g.input_rows(rows), g.padding.left, g.padding.right};
}

// Zeroes the channels of `pixels` pixels that are `stride` values apart.
template <class T>
void clear_pixels(T* target, int64_t pixels, int64_t stride, int64_t channels) {
  if (stride == channels) {
    std::fill_n(target, pixels * channels, T{});
    return;
  }
  for (int64_t i = 0; i < pixels; ++i) std::fill_n(target + i * stride, channels, T{});
}

// A band at `target`, whose pixels are `pixel_stride` values apart: load_row(h, to) brings the rows
// of the image, `channels` of each pixel; what is outside the image is zero.
template <class T, class LoadRow>
PixelRows<T> padded_band(const Image& image, const PaddedRows& what, int64_t channels, T* target,
                         int64_t pixel_stride, const LoadRow& load_row) {
  const int64_t width = what.left + image.width + what.right;
  const auto clear = [&](T* at, int64_t pixels) {
    clear_pixels(at, pixels, pixel_stride, channels);
  };
  for (int64_t i = 0; i < what.rows; ++i) {
    T* row = target + i * width * pixel_stride;
    const int64_t h = what.row + i;
    if (h < 0 || h >= image.height) {
      clear(row, width);
      continue;
    }
    T* inside = row + what.left * pixel_stride;
    clear(row, what.left);
    load_row(h, inside);
    clear(inside + image.width * pixel_stride, what.right);
  }
  return {target, width * pixel_stride, pixel_stride};
}

// All channels of the image, as such a band.
Band load_band(const Microkernels& kernels, const Image& image, const PaddedRows& what,
               float* target, int64_t pixel_stride);

// What those output rows read of an image of bfloat16 pixels: where it lies or, padded or brought
// together, in `scratch`.
Bfloat16Band bfloat16_rows(const Image& image, const ConvGeometry& geometry, int64_t n, int64_t row,
                           int64_t rows, Scratch& scratch);

// Rows of an image as float32 pixels whose channels are adjacent: where they lie, or converted into
// `scratch`.
Band float_rows(const Microkernels& kernels, const Image& image, int64_t n, Range rows,
                Scratch& scratch);

// Writes channels [first, last) of `rows` rows of the band to image n from row `row` on.
void store_band(const Microkernels& kernels, const Band& band, const Image& image, int64_t n,
                int64_t row, int64_t rows, int64_t first, int64_t last);

}  // namespace fastres::cpu

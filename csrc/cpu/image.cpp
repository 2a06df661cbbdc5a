#include "image.h"

#include <algorithm>
#include <cstring>

namespace fastres::cpu {
namespace {

// Some planes side by side: kPlanes channels of each pixel.
template <int kPlanes>
void interleave(const float* planes, const Image& image, float* target, int64_t pixel_stride) {
  for (int64_t w = 0; w < image.width; ++w) {
#pragma GCC unroll 4
    for (int c = 0; c < kPlanes; ++c) {
      target[w * pixel_stride + c] = planes[c * image.stride_c + w * image.stride_w];
    }
  }
}

// One row of pixels whose channels are not adjacent (NCHW). A few planes at a time: pixel by pixel
// through many of them every value would be in a cache line of its own.
void load_row_by_channel(const Microkernels& kernels, const Image& image, const char* source,
                         float* target, int64_t pixel_stride) {
  if (image.type != StorageType::float32) {
    for (int64_t c = 0; c < image.channels; ++c) {
      for (int64_t w = 0; w < image.width; ++w) {
        const int64_t offset = c * image.stride_c + w * image.stride_w;
        kernels.widen(source + offset * image.element_bytes(), image.type,
                      target + w * pixel_stride + c, 1);
      }
    }
    return;
  }
  const auto* planes = reinterpret_cast<const float*>(source);
  int64_t left = image.channels;
  for (; left >= 4; left -= 4, planes += 4 * image.stride_c, target += 4) {
    interleave<4>(planes, image, target, pixel_stride);
  }
  if (left == 3) interleave<3>(planes, image, target, pixel_stride);
  if (left == 2) interleave<2>(planes, image, target, pixel_stride);
  if (left == 1) interleave<1>(planes, image, target, pixel_stride);
}

void load_row(const Microkernels& kernels, const Image& image, int64_t n, int64_t h, float* target,
              int64_t pixel_stride) {
  const char* source = image.at(n, h, 0);
  if (!image.channels_adjacent())
    return load_row_by_channel(kernels, image, source, target, pixel_stride);
  const bool dense = image.stride_w == image.channels && pixel_stride == image.channels;
  if (dense || image.width == 1) {
    return kernels.widen(source, image.type, target, image.width * image.channels);
  }
  for (int64_t w = 0; w < image.width; ++w) {
    kernels.widen(image.at(n, h, w), image.type, target + w * pixel_stride, image.channels);
  }
}

}  // namespace

Image strided_image(Image image, Extent step) {
  image.height = (image.height + step.h - 1) / step.h;
  image.width = (image.width + step.w - 1) / step.w;
  image.stride_h *= step.h;
  image.stride_w *= step.w;
  return image;
}

void join_images(ConvGeometry& g, std::vector<Image*> images) {
  if (!g.is_pointwise() || g.stride.h != 1 || g.stride.w != 1) return;
  std::erase_if(images, [](const Image* image) { return image->data == nullptr; });
  const auto joins = [](const Image* image) {
    return image->batch <= 1 || image->stride_n == image->height * image->stride_h;
  };
  if (!std::all_of(images.begin(), images.end(), joins)) return;
  for (Image* image : images) {
    image->height *= image->batch;
    image->batch = 1;
  }
  g.in.h *= g.batch;
  g.out.h *= g.batch;
  g.batch = 1;
}

void clear_pixels(float* target, int64_t pixels, int64_t stride, int64_t channels) {
  if (stride == channels) {
    std::fill_n(target, pixels * channels, 0.0F);
    return;
  }
  for (int64_t i = 0; i < pixels; ++i) std::fill_n(target + i * stride, channels, 0.0F);
}

Band load_band(const Microkernels& kernels, const Image& image, const PaddedRows& what,
               float* target, int64_t pixel_stride) {
  return padded_band(image, what, image.channels, target, pixel_stride, [&](int64_t h, float* row) {
    load_row(kernels, image, what.n, h, row, pixel_stride);
  });
}

Band float_rows(const Microkernels& kernels, const Image& image, int64_t n, Range rows,
                Scratch& scratch) {
  if (image.is_float32_nhwc()) return direct_band(image, n, rows.begin);
  return load_band(kernels, image, {n, rows.begin, rows.size(), 0, 0},
                   scratch.floats(rows.size() * image.width * image.channels), image.channels);
}

void store_band(const Microkernels& kernels, const Band& band, const Image& image, int64_t n,
                int64_t row, int64_t rows, int64_t first, int64_t last) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t w = 0; w < image.width; ++w) {
      const float* source = band.data + i * band.row_stride + w * band.pixel_stride + first;
      char* target = image.at(n, row + i, w) + first * image.element_bytes();
      kernels.narrow(source, image.type, target, last - first);
    }
  }
}

}  // namespace fastres::cpu

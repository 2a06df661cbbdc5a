#include "image.h"

#include <algorithm>
#include <bit>

namespace fastres::cpu {
namespace {

float to_float(float value) { return value; }
float to_float(Bfloat16 bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Some planes side by side: kPlanes channels of each pixel.
template <int kPlanes, class T>
void interleave(const T* planes, const Image& image, float* target, int64_t pixel_stride) {
  for (int64_t w = 0; w < image.width; ++w) {
#pragma GCC unroll 4
    for (int c = 0; c < kPlanes; ++c) {
      target[w * pixel_stride + c] = to_float(planes[c * image.stride_c + w * image.stride_w]);
    }
  }
}

// All planes, a few at a time: pixel by pixel through many of them every value would be in a cache
// line of its own.
template <class T>
void interleave_all(const char* source, const Image& image, float* target, int64_t pixel_stride) {
  const auto* planes = reinterpret_cast<const T*>(source);
  int64_t left = image.channels;
  for (; left >= 4; left -= 4, planes += 4 * image.stride_c, target += 4) {
    interleave<4>(planes, image, target, pixel_stride);
  }
  if (left == 3) interleave<3>(planes, image, target, pixel_stride);
  if (left == 2) interleave<2>(planes, image, target, pixel_stride);
  if (left == 1) interleave<1>(planes, image, target, pixel_stride);
}

// One row of pixels whose channels are not adjacent (NCHW).
void load_row_by_channel(const Microkernels& kernels, const Image& image, const char* source,
                         float* target, int64_t pixel_stride) {
  if (image.type == StorageType::float32) {
    interleave_all<float>(source, image, target, pixel_stride);
  } else if (image.type == StorageType::bfloat16) {
    interleave_all<Bfloat16>(source, image, target, pixel_stride);
  } else {
    for (int64_t c = 0; c < image.channels; ++c) {
      for (int64_t w = 0; w < image.width; ++w) {
        const int64_t offset = c * image.stride_c + w * image.stride_w;
        kernels.widen(source + offset * image.element_bytes(), image.type,
                      target + w * pixel_stride + c, 1);
      }
    }
  }
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
  image.height = ceil_div(image.height, step.h);
  image.width = ceil_div(image.width, step.w);
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

Band load_band(const Microkernels& kernels, const Image& image, const PaddedRows& what,
               float* target, int64_t pixel_stride) {
  return padded_band(image, what, image.channels, target, pixel_stride, [&](int64_t h, float* row) {
    load_row(kernels, image, what.n, h, row, pixel_stride);
  });
}

Bfloat16Band bfloat16_rows(const Image& image, const ConvGeometry& g, int64_t n, int64_t row,
                           int64_t rows, Scratch& scratch) {
  if (image.is_band_for(g.kernel.w, StorageType::bfloat16) && !g.padding.any()) {
    return direct_band16(image, n, row * g.stride.h);
  }
  const PaddedRows what = padded_rows(g, n, row, rows);
  const int64_t channels = image.channels;
  Bfloat16* target = scratch.bfloat16s(what.rows * g.padded_width() * channels);
  return padded_band(image, what, channels, target, channels, [&](int64_t h, Bfloat16* row) {
    const auto* source = reinterpret_cast<const Bfloat16*>(image.at(what.n, h, 0));
    if (image.stride_w == channels) {
      std::copy_n(source, image.width * channels, row);
      return;
    }
    for (int64_t w = 0; w < image.width; ++w) {
      std::copy_n(source + w * image.stride_w, channels, row + w * channels);
    }
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

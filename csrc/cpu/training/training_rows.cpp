#include "training_rows.h"

#include "../runtime/scratch.h"

namespace fastres::cpu {

ConstPixels row_pixels(const Microkernels& kernels, const Image& image, int64_t n, int64_t h,
                       Range channels, float* scratch) {
  if (image.is_float32_nhwc()) {
    return {reinterpret_cast<const float*>(image.at(n, h, 0)) + channels.begin, image.stride_w};
  }
  Image part = image;
  part.data = image.at(n, h, 0) + channels.begin * image.stride_c * image.element_bytes();
  part.channels = channels.size();
  const Band band = load_band(kernels, part, {0, 0, 1, 0, 0}, scratch, part.channels);
  return {band.data, band.pixel_stride};
}

}  // namespace fastres::cpu

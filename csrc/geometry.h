// The sizes of a convolution, worked out once and shared by all backends.

#pragma once

#include <cstdint>

namespace fastres {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Padding {
  int64_t top = 0, bottom = 0, left = 0, right = 0;
  bool any() const { return top != 0 || bottom != 0 || left != 0 || right != 0; }
};

struct Extent {
  int64_t h = 1, w = 1;
};

struct ConvGeometry {
  int64_t batch = 0;
  int64_t in_channels = 0;
  Extent in;
  int64_t out_channels = 0;
  Extent out;
  Extent kernel, stride, dilation;
  Padding padding;
  int64_t groups = 1;

  int64_t padded_width() const { return in.w + padding.left + padding.right; }
  // Padded input rows that `rows` output rows read.
  int64_t input_rows(int64_t rows) const {
    return (rows - 1) * stride.h + (kernel.h - 1) * dilation.h + 1;
  }
  bool is_pointwise() const { return kernel.h == 1 && kernel.w == 1 && !padding.any(); }
  double flops() const {
    return 2.0 * static_cast<double>(batch * out.h * out.w * out_channels) *
           static_cast<double>(in_channels / groups * kernel.h * kernel.w);
  }
};

}  // namespace fastres

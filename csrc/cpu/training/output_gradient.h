// The gradient of a convolution's output, formed where it is loaded: that of y itself and those of
// y's statistics.

#pragma once

#include <optional>
#include <vector>

#include "prologue.h"

namespace fastres::cpu {

class OutputGradient {
 public:
  // grad_y times grad_scale; grad_scale, grad_mean and grad_m2 may be absent. All tensors outlive
  // this.
  OutputGradient(const Tensor& grad_y, const std::optional<Tensor>& grad_scale,
                 const std::optional<Tensor>& grad_mean, const std::optional<Tensor>& grad_m2,
                 const Tensor& y, const Tensor& mean, const Tensor& x, const TrainingConv& conv,
                 const char* op);

  Image& grad() { return grad_; }
  Image& y() { return y_; }
  // grad_y alone, in the layout that the kernels read.
  bool direct() const { return plain_ && grad_.is_float32_nhwc(); }
  const Image& image() const { return grad_; }

  // Rows and columns of image n, zero outside of it, as a band at `target`, its pixels
  // band_pixel_stride(channels.size()) apart. Uses the thread's residual scratch.
  struct Part {
    int64_t n;
    Range rows, columns;
    Range channels;
  };
  Band load(const Kernels& kernels, const Part& part, float* target) const;

  // What loading those rows of image n will read.
  Upcoming upcoming(int64_t n, Range rows) const;

 private:
  void load_row(const Kernels& kernels, const Part& part, int64_t h, Range columns,
                Pixels target) const;

  Image grad_, y_;
  bool plain_;  // grad_y alone
  std::vector<float> scale_, offset_, slope_;
  const float* mean_ = nullptr;
  std::vector<Tensor> kept_;
};

}  // namespace fastres::cpu

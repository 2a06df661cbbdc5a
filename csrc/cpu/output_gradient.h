// The gradient of a convolution's output, formed where it is loaded: that of y itself and those of
// y's statistics.

#pragma once

#include <optional>
#include <vector>

#include "prologue.h"

namespace fastres::cpu {

class OutputGradient {
 public:
  // grad_mean and grad_m2 may be absent. All tensors outlive this.
  OutputGradient(const Tensor& grad_y, const std::optional<Tensor>& grad_mean,
                 const std::optional<Tensor>& grad_m2, const Tensor& y, const Tensor& mean,
                 const TrainingConv& conv, const char* op);

  Image& grad() { return grad_; }
  Image& y() { return y_; }
  // grad_y alone, in the layout that the kernels read.
  bool direct() const { return !has_stats_ && grad_.is_float32_nhwc(); }
  const Image& image() const { return grad_; }

  // A part of row h, to `target`.
  // `scratch` has room for two rows of those channels.
  struct Part {
    int64_t n, h;
    Range pixels;
    Range channels;
  };
  void load(const Kernels& kernels, const Part& part, Pixels target, float* scratch) const;
  int64_t scratch_floats(int64_t channels) const { return 2 * grad_.width * channels; }

 private:
  Image grad_, y_;
  bool has_stats_;
  std::vector<float> offset_, slope_;
  const float* mean_ = nullptr;
  std::vector<Tensor> kept_;
};

}  // namespace fastres::cpu

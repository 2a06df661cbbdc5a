// conv_stats_backward on the CPU: the gradients of the input, of its affine and of the weight.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "allocate.h"
#include "dgrad.h"
#include "wgrad.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "conv_stats_backward";

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor empty_vector(int64_t size, const Tensor& like) {
  return torch::stable::empty({size}, ScalarType::Float, std::nullopt, like.device());
}

float* floats_of(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// grad_x and the gradients of the affine's mean, scale and bias, as far as they are wanted.
void input_gradients(const Kernels& kernels, const TrainingConv& conv,
                     const OutputGradient& gradient, const Tensor& x, bool need_x, bool need_affine,
                     Gradients& gradients) {
  const ConvGeometry& g = conv.geometry;
  Tensor grad_x = empty_nhwc(g.batch, g.in_channels, g.in, x.scalar_type(), x);
  InputGradientSums sums{Totals(g.in_channels), Totals(g.in_channels)};
  if (g.batch > 0) sums = run_dgrad(kernels, conv, gradient, image_of(grad_x));
  if (need_x) std::get<0>(gradients) = grad_x;
  if (!need_affine) return;
  Tensor mean = empty_vector(g.in_channels, x), scale = empty_vector(g.in_channels, x),
         bias = empty_vector(g.in_channels, x);
  for (int64_t c = 0; c < g.in_channels; ++c) {
    const double sum = sums.grad[c];
    floats_of(mean)[c] = static_cast<float>(-sum * conv.prologue.main.scale[c]);
    floats_of(scale)[c] = static_cast<float>(sums.grad_centred[c]);
    floats_of(bias)[c] = static_cast<float>(sum);
  }
  std::get<1>(gradients) = mean;
  std::get<2>(gradients) = scale;
  std::get<3>(gradients) = bias;
}

Tensor weight_gradient(const Kernels& kernels, const TrainingConv& conv,
                       const OutputGradient& gradient, const Tensor& weight) {
  // Of the weight's own strides, where it has no gaps.
  Tensor grad = torch::stable::empty_like(torch::stable::to(weight, ScalarType::Float));
  if (conv.geometry.batch == 0) {
    return torch::stable::to(torch::stable::zero_(grad), weight.scalar_type());
  }
  WeightView view = conv.weight;
  view.data = floats_of(grad);
  view.stride_k = grad.stride(0);
  view.stride_c = grad.stride(1);
  view.stride_r = grad.stride(2);
  view.stride_s = grad.stride(3);
  run_wgrad(kernels, conv, gradient, view);
  return torch::stable::to(grad, weight.scalar_type());
}

Gradients conv_stats_backward(const Tensor& grad_y, const std::optional<Tensor>& grad_mean,
                              const std::optional<Tensor>& grad_m2, const Tensor& x,
                              const std::optional<Tensor>& in_mean,
                              const std::optional<Tensor>& in_scale,
                              const std::optional<Tensor>& in_bias, const std::string& in_act,
                              double in_act_slope, const Tensor& weight, const Tensor& y,
                              const Tensor& mean, const std::vector<int64_t>& stride,
                              const std::vector<int64_t>& padding,
                              const std::vector<int64_t>& dilation, int64_t groups, bool need_x,
                              bool need_affine, bool need_weight) {
  const TrainingConv conv({x, in_mean, in_scale, in_bias, in_act, in_act_slope, weight, stride,
                           padding, dilation, groups},
                          kOp);
  const OutputGradient gradient(grad_y, grad_mean, grad_m2, y, mean, conv, kOp);
  const Kernels kernels = selected_kernels();
  Gradients gradients{empty_vector(0, x), empty_vector(0, x), empty_vector(0, x),
                      empty_vector(0, x), empty_vector(0, x)};
  need_affine = need_affine && conv.has_affine;
  if (need_x || need_affine) {
    input_gradients(kernels, conv, gradient, x, need_x, need_affine, gradients);
  }
  if (need_weight) std::get<4>(gradients) = weight_gradient(kernels, conv, gradient, weight);
  return gradients;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("conv_stats_backward", TORCH_BOX(&fastres::cpu::conv_stats_backward));
}

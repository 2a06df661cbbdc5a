// conv_stats_backward on CUDA: the gradients of the input, of its affine and of the weight.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "executor.h"
#include "training_conv.h"

namespace fastres::cuda {
namespace {

constexpr const char* kOp = "conv_stats_backward";

// grad_y * grad_scale + grad_mean / n + 2 * grad_m2 * (y - mean), as a source.
Source output_gradient(Operands& operands, const Tensor& grad_y,
                       const std::optional<Tensor>& grad_scale,
                       const std::optional<Tensor>& grad_mean, const std::optional<Tensor>& grad_m2,
                       const Tensor& x, const Tensor& y, const Tensor& mean,
                       const ConvGeometry& g) {
  check_output_like(grad_y, x, g, kOp, "grad_y");
  check_output_like(y, x, g, kOp, "y");
  const float* means = operands.vector(mean, g.out_channels, "mean");
  Source source = plain_source(operands.image(grad_y, "grad_y"));
  if (!grad_scale.has_value() && !grad_mean.has_value() && !grad_m2.has_value()) return source;
  source.addend = source.x;
  source.addend_scale = operands.vector(grad_scale, g.out_channels, "grad_scale");
  source.x = operands.image(y, "y");
  source.mean = means;
  source.scale = operands.vector(grad_m2, g.out_channels, "grad_m2");
  source.scale_factor = 2.0F;
  source.bias = operands.vector(grad_mean, g.out_channels, "grad_mean");
  source.bias_factor = 1.0F / static_cast<float>(std::max<int64_t>(1, g.batch * g.out.h * g.out.w));
  return source;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_stats_backward_on_cuda(
    const Tensor& grad_y, const std::optional<Tensor>& grad_mean,
    const std::optional<Tensor>& grad_m2, const Tensor& x, const std::optional<Tensor>& in_mean,
    const std::optional<Tensor>& in_scale, const std::optional<Tensor>& in_bias,
    const std::string& in_act, double in_act_slope, const Tensor& weight, const Tensor& y,
    const Tensor& mean, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, bool need_x, bool need_affine,
    bool need_weight, const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& grad_in,
    const std::string& algorithm, const std::optional<Tensor>& in_residual,
    const std::optional<Tensor>& activated) {
  Operands operands(x, kOp, "x");
  const TrainingConv conv(operands, x, in_mean, in_scale, in_bias, in_act, in_act_slope, weight,
                          stride, padding, dilation, groups, algorithm, kOp);
  const ConvGeometry& g = conv.geometry;
  ConvStatsBackwardArguments a{};
  a.gradient = output_gradient(operands, grad_y, grad_scale, grad_mean, grad_m2, x, y, mean, g);
  a.x = conv.x;
  a.weight = conv.weight;
  if (grad_in.has_value()) {
    check_like(*grad_in, x, kOp, "grad_in", "x");
    a.grad_in = operands.image(*grad_in, "grad_in");
  }
  check_activated(in_residual, activated, in_mean, x, kOp);
  a.in_residual = operands.image(in_residual, "in_residual");
  a.activated = operands.image(activated, "activated");

  need_affine = need_affine && in_mean.has_value();
  const int64_t channels = need_affine ? g.in_channels : 0;
  Tensor in_mean_grad = operands.empty(channels), in_scale_grad = operands.empty(channels),
         in_bias_grad = operands.empty(channels);
  a.grad_in_mean = floats_of(in_mean_grad);
  a.grad_in_scale = floats_of(in_scale_grad);
  a.grad_in_bias = floats_of(in_bias_grad);
  Tensor grad_x = need_x ? operands.empty_image(g.batch, g.in_channels, g.in, x.scalar_type())
                         : operands.empty(0);
  if (grad_x.numel() > 0) a.grad_x = grad_x.mutable_data_ptr();
  // Of the weight's own strides, where it has no gaps.
  Tensor grad_weight = need_weight ? torch::stable::empty_like(weight) : operands.empty(0);
  if (need_weight) a.grad_weight = weight_tensor(grad_weight);

  TorchExecutor executor(x);
  conv_stats_backward(executor, dtype_of(x), g, a);
  return {grad_x, in_mean_grad, in_scale_grad, in_bias_grad, grad_weight};
}

}  // namespace
}  // namespace fastres::cuda

STABLE_TORCH_LIBRARY_IMPL(fastres, CUDA, m) {
  m.impl("conv_stats_backward", TORCH_BOX(&fastres::cuda::conv_stats_backward_on_cuda));
}

// affine_add_act and its backward on CUDA: the end of a block in one pass over its tensors.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "executor.h"
#include "tensors.h"

namespace fastres::cuda {
namespace {

struct Vectors {
  const std::optional<Tensor>& mean;
  const std::optional<Tensor>& scale;
  const std::optional<Tensor>& bias;
};

AffineAddActParams block_end(Operands& operands, const Tensor& y, const Tensor& mean,
                             const Tensor& scale, const Tensor& bias,
                             const std::optional<Tensor>& residual, const Vectors& res,
                             const std::string& act, double act_slope, const char* op) {
  check_block_end(y, op);
  check(
      res.mean.has_value() == res.scale.has_value() && res.mean.has_value() == res.bias.has_value(),
      op, ": res_mean, res_scale and res_bias must be given together or not at all");
  check(!res.mean.has_value() || residual.has_value(), op, ": res_mean needs a residual");
  const int64_t channels = y.size(1);
  AffineAddActParams p{};
  p.y = operands.image(y, "y");
  p.mean = operands.vector(mean, channels, "mean");
  p.scale = operands.vector(scale, channels, "scale");
  p.bias = operands.vector(bias, channels, "bias");
  if (residual.has_value()) {
    check_like(*residual, y, op, "residual");
    p.residual = operands.image(*residual, "residual");
  }
  p.res_mean = operands.vector(res.mean, channels, "res_mean");
  p.res_scale = operands.vector(res.scale, channels, "res_scale");
  p.res_bias = operands.vector(res.bias, channels, "res_bias");
  p.act = activation_of(act, op);
  p.act_slope = static_cast<float>(act_slope);
  p.pixels = y.size(0) * y.size(2) * y.size(3);
  p.channels = narrow(channels);
  return p;
}

Tensor empty_like_image(const Operands& operands, const Tensor& y) {
  return operands.empty_image(y.size(0), y.size(1), {y.size(2), y.size(3)}, y.scalar_type());
}

Tensor affine_add_act_on_cuda(const Tensor& y, const Tensor& mean, const Tensor& scale,
                              const Tensor& bias, const std::optional<Tensor>& residual,
                              const std::optional<Tensor>& res_mean,
                              const std::optional<Tensor>& res_scale,
                              const std::optional<Tensor>& res_bias, const std::string& act,
                              double act_slope) {
  constexpr const char* kOp = "affine_add_act";
  Operands operands(y, kOp, "y");
  AffineAddActParams p = block_end(operands, y, mean, scale, bias, residual,
                                   {res_mean, res_scale, res_bias}, act, act_slope, kOp);
  Tensor out = empty_like_image(operands, y);
  if (y.numel() == 0) return out;
  p.out = out.mutable_data_ptr();
  TorchExecutor executor(y);
  affine_add_act(executor, dtype_of(y), p);
  return out;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients affine_add_act_backward_on_cuda(const Tensor& grad, const Tensor& y, const Tensor& mean,
                                          const Tensor& scale, const Tensor& bias,
                                          const std::optional<Tensor>& residual,
                                          const std::optional<Tensor>& res_mean,
                                          const std::optional<Tensor>& res_scale,
                                          const std::optional<Tensor>& res_bias,
                                          const std::string& act, double act_slope, bool unscaled) {
  constexpr const char* kOp = "affine_add_act_backward";
  Operands operands(y, kOp, "y");
  AffineAddActParams p = block_end(operands, y, mean, scale, bias, residual,
                                   {res_mean, res_scale, res_bias}, act, act_slope, kOp);
  check_like(grad, y, kOp, "grad");
  p.grad = operands.image(grad, "grad");
  const int64_t channels = y.size(1), res_channels = res_mean.has_value() ? channels : 0;
  Tensor grad_y = empty_like_image(operands, y);
  const bool writes_both = residual.has_value() && !unscaled;
  Tensor grad_residual =
      writes_both ? empty_like_image(operands, y) : operands.empty(0, y.scalar_type());
  p.unscaled = unscaled ? 1 : 0;
  p.out = grad_y.mutable_data_ptr();
  if (writes_both) p.grad_residual = grad_residual.mutable_data_ptr();
  Tensor grad_mean = operands.empty(channels), grad_scale = operands.empty(channels),
         grad_bias = operands.empty(channels), grad_res_mean = operands.empty(res_channels),
         grad_res_scale = operands.empty(res_channels),
         grad_res_bias = operands.empty(res_channels);
  if (channels > 0) {
    TorchExecutor executor(y);
    affine_add_act_backward(
        executor, dtype_of(y), p,
        {floats_of(grad_mean), floats_of(grad_scale), floats_of(grad_bias),
         floats_of(grad_res_mean), floats_of(grad_res_scale), floats_of(grad_res_bias)});
  }
  return {grad_y,        grad_mean,     grad_scale,     grad_bias,
          grad_residual, grad_res_mean, grad_res_scale, grad_res_bias};
}

}  // namespace
}  // namespace fastres::cuda

STABLE_TORCH_LIBRARY_IMPL(fastres, CUDA, m) {
  m.impl("affine_add_act", TORCH_BOX(&fastres::cuda::affine_add_act_on_cuda));
  m.impl("affine_add_act_backward", TORCH_BOX(&fastres::cuda::affine_add_act_backward_on_cuda));
}

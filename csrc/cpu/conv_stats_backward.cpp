// conv_stats_backward on the CPU: the gradients of the input, of its affine and of the weight.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "convolution/split_rows.h"
#include "convolution/winograd_batch.h"
#include "runtime/allocate.h"
#include "training/fused_backward.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "conv_stats_backward";

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

float* floats_of(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// Those of the affine's mean, scale and bias.
void affine_gradients(const Affine& affine, const InputGradientSums& sums, const Tensor& like,
                      Gradients& gradients) {
  const int64_t channels = like.size(1);
  Tensor mean = empty_vector(channels, like), scale = empty_vector(channels, like),
         bias = empty_vector(channels, like);
  for (int64_t c = 0; c < channels; ++c) {
    const double sum = sums.grad[c];
    floats_of(mean)[c] = static_cast<float>(-sum * affine.scale[c]);
    floats_of(scale)[c] = static_cast<float>(sums.grad_centred[c]);
    floats_of(bias)[c] = static_cast<float>(sum);
  }
  std::get<1>(gradients) = mean;
  std::get<2>(gradients) = scale;
  std::get<3>(gradients) = bias;
}

// A 1x1 with a stride reads every step-th pixel alone; the others' gradient is zero.
Image input_target(const TrainingConv& conv, const Tensor& grad_x) {
  if (conv.step.h > 1 || conv.step.w > 1)
    clear_memory(grad_x.mutable_data_ptr(), grad_x.numel() * grad_x.element_size());
  return strided_image(image_of(grad_x), conv.step);
}

WeightView weight_target(const WeightView& weight, Tensor& grad) {
  WeightView view = weight;
  view.data = floats_of(grad);
  view.stride_k = grad.stride(0);
  view.stride_c = grad.stride(1);
  view.stride_r = grad.stride(2);
  view.stride_s = grad.stride(3);
  return view;
}

// Of few channels, where matrix tiles do without Winograd's algorithm.
InputGradientSums run_narrow(const Kernels& kernels, const TrainingConv& conv,
                             const OutputGradient& gradient, const InputBackward& input,
                             const WeightView& grad_weight) {
  TrainingConv direct = conv;
  direct.winograd = false;
  if (grad_weight.data != nullptr) {
    if (WeightSums(kernels, direct).on_tiles()) {
      run_wgrad(kernels, direct, gradient, grad_weight);
    } else {
      run_winograd_wgrad(kernels, conv, gradient, grad_weight);
    }
  }
  if (input.grad_x.data == nullptr) return InputGradientSums(conv.geometry.in_channels);
  return run_dgrad(kernels, direct, gradient, input);
}

// Whether the gradients of what Winograd may compute take less time directly: as its outputs do,
// but for weights whose products are batched.
bool prefers_direct_gradients(const Kernels& kernels, const WeightView& weight) {
  if (multiplies_bfloat16(kernels.base)) return true;
  return prefers_direct(kernels.base, std::max(weight.out_channels, weight.group_in_channels)) &&
         !trains_in_winograd_batches(weight);
}

InputGradientSums run_winograd(const Kernels& kernels, const TrainingConv& conv,
                               const OutputGradient& gradient, const InputBackward& input,
                               const WeightView& grad_weight) {
  const ConvGeometry& g = conv.geometry;
  if (prefers_direct_gradients(kernels, conv.weight)) {
    return run_narrow(kernels, conv, gradient, input, grad_weight);
  }
  if (grad_weight.data != nullptr) run_winograd_wgrad(kernels, conv, gradient, grad_weight);
  if (input.grad_x.data == nullptr) return InputGradientSums(g.in_channels);
  if (trains_in_winograd_batches(conv.weight)) {
    return run_winograd_dgrad(kernels, conv, gradient, input);
  }
  return run_dgrad(kernels, conv, gradient, input);
}

// Targets without data are not wanted.
InputGradientSums run(const Kernels& kernels, const TrainingConv& conv,
                      const OutputGradient& gradient, const InputBackward& input,
                      const WeightView& grad_weight) {
  if (conv.winograd) return run_winograd(kernels, conv, gradient, input, grad_weight);
  if (fuses_backward(conv)) {
    return run_fused_backward(kernels, conv, gradient, input, grad_weight);
  }
  if (grad_weight.data != nullptr) run_wgrad(kernels, conv, gradient, grad_weight);
  if (input.grad_x.data == nullptr) return InputGradientSums(conv.geometry.in_channels);
  return run_dgrad(kernels, conv, gradient, input);
}

Image image_like(const std::optional<Tensor>& tensor, const Tensor& x, const char* name) {
  if (!tensor.has_value()) return {};
  check_cpu(*tensor, kOp, name);
  check_like(*tensor, x, kOp, name, "x");
  return image_of(*tensor);
}

// What affine_add_act was given: x as `conv` was given the prologue's constants, and in_residual.
ActivatedBefore activated_before(const TrainingConv& conv, const Tensor& x,
                                 const std::optional<Tensor>& in_residual) {
  if (!in_residual.has_value()) return {};
  ActivatedBefore before;
  before.y = image_of(x);
  before.residual = image_like(in_residual, x, "in_residual");
  before.f = conv.prologue;
  before.f.residual = conv.identity.identity();
  return before;
}

Gradients conv_stats_backward(
    const Tensor& grad_y, const std::optional<Tensor>& grad_mean,
    const std::optional<Tensor>& grad_m2, const Tensor& x, const std::optional<Tensor>& in_mean,
    const std::optional<Tensor>& in_scale, const std::optional<Tensor>& in_bias,
    const std::string& in_act, double in_act_slope, const Tensor& weight, const Tensor& y,
    const Tensor& mean, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, bool need_x, bool need_affine,
    bool need_weight, const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& grad_in,
    const std::string& algorithm, const std::optional<Tensor>& in_residual,
    const std::optional<Tensor>& activated) {
  check_activated(in_residual, activated, in_mean, x, kOp);
  TrainingConv conv({x, in_mean, in_scale, in_bias, in_act, in_act_slope, weight, stride, padding,
                     dilation, groups, algorithm, grad_in.has_value() || activated.has_value()},
                    kOp);
  const OutputGradient gradient(grad_y, grad_scale, grad_mean, grad_m2, y, mean, x, conv, kOp);
  const AffineAct prologue = conv.prologue;
  InputBackward input;
  input.grad_in = image_like(grad_in, x, "grad_in");
  input.before = activated_before(conv, x, in_residual);
  if (activated.has_value()) conv.take_plain(image_like(activated, x, "activated"));
  Gradients gradients{empty_vector(0, x), empty_vector(0, x), empty_vector(0, x),
                      empty_vector(0, x), empty_vector(0, x)};
  need_affine = need_affine && conv.has_affine;
  Tensor grad_x = empty_vector(0, x), grad_weight = grad_x;
  if (need_x || need_affine) {
    grad_x = empty_nhwc(x.size(0), x.size(1), {x.size(2), x.size(3)}, x.scalar_type(), x);
  }
  if (need_weight) {
    grad_weight = empty_weight_gradient(weight);
  }
  InputGradientSums sums(conv.geometry.in_channels);
  if (conv.geometry.batch > 0) {
    if (need_x || need_affine) input.grad_x = input_target(conv, grad_x);
    sums = run(selected_kernels(conv.x.type), conv, gradient, input,
               need_weight ? weight_target(conv.weight, grad_weight) : WeightView{});
  } else if (need_weight) {
    torch::stable::zero_(grad_weight);
  }
  if (need_x) std::get<0>(gradients) = grad_x;
  if (need_affine) affine_gradients(prologue.main, sums, x, gradients);
  if (need_weight) {
    std::get<4>(gradients) = torch::stable::to(grad_weight, weight.scalar_type());
  }
  return gradients;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("conv_stats_backward", TORCH_BOX(&fastres::cpu::conv_stats_backward));
}

// live_bottleneck on the CPU: grouped_bottleneck of weights that are packed at each call.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "bottleneck_arguments.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "live_bottleneck";

CheckedLayer checked_layer(const Tensor& weight, const char* weight_name,
                           const std::optional<Tensor>& scale, const Tensor& shift,
                           const char* shift_name, int64_t groups, const std::string& algorithm) {
  check_cpu(weight, kOp, weight_name);
  CheckedLayer checked =
      plain_layer(checked_weight(weight, scale, groups, algorithm, kOp, weight_name));
  set_shift(checked, shift, kOp, shift_name);
  return checked;
}

Tensor live_bottleneck(const Tensor& x, const Tensor& weight1, const std::optional<Tensor>& scale1,
                       const Tensor& shift1, const Tensor& weight2,
                       const std::optional<Tensor>& scale2, const Tensor& shift2,
                       const Tensor& weight3, const std::optional<Tensor>& scale3,
                       const Tensor& shift3, const std::optional<Tensor>& weight_down,
                       const std::optional<Tensor>& scale_down,
                       const std::optional<Tensor>& shift_down, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& dilation, int64_t groups,
                       const std::string& algorithm, const std::string& act) {
  const CheckedLayer reduce =
      checked_layer(weight1, "weight1", scale1, shift1, "shift1", 1, "direct");
  const CheckedLayer spatial =
      checked_layer(weight2, "weight2", scale2, shift2, "shift2", groups, algorithm);
  const CheckedLayer expand =
      checked_layer(weight3, "weight3", scale3, shift3, "shift3", 1, "direct");
  std::optional<CheckedLayer> down;
  check(weight_down.has_value() == shift_down.has_value(), kOp,
        ": weight_down and shift_down must be given together");
  if (weight_down.has_value()) {
    down = checked_layer(*weight_down, "weight_down", scale_down, *shift_down, "shift_down", 1,
                         "direct");
  }
  return run_bottlenecks(
      x, {checked_bottleneck(
             {block_input(x, kOp), reduce, spatial, expand, down, stride, dilation, act}, groups,
             {"weight1", "weight2", "weight3", "weight_down"}, kOp)});
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("live_bottleneck", TORCH_BOX(&fastres::cpu::live_bottleneck));
}

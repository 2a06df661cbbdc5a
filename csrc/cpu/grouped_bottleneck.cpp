// grouped_bottleneck on the CPU: 1x1 -> 3x3 -> 1x1 -> + shortcut, an activation after each.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "bottleneck_arguments.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "grouped_bottleneck";

CheckedLayer packed_layer(const Tensor& packed, const char* packed_name, const Tensor& shift,
                          const char* shift_name) {
  check_cpu(packed, kOp, packed_name);
  CheckedLayer checked;
  checked.layer.header = packed_header(packed, kOp, packed_name);
  checked.layer.weights = packed_payload(packed.const_data_ptr());
  checked.kept.push_back(packed);
  set_shift(checked, shift, kOp, shift_name);
  return checked;
}

Tensor grouped_bottleneck(const Tensor& x, const Tensor& packed1, const Tensor& shift1,
                          const Tensor& packed2, const Tensor& shift2, const Tensor& packed3,
                          const Tensor& shift3, const std::optional<Tensor>& packed_down,
                          const std::optional<Tensor>& shift_down,
                          const std::vector<int64_t>& stride, const std::vector<int64_t>& dilation,
                          int64_t groups, const std::string& act) {
  const CheckedLayer reduce = packed_layer(packed1, "packed1", shift1, "shift1");
  const CheckedLayer spatial = packed_layer(packed2, "packed2", shift2, "shift2");
  const CheckedLayer expand = packed_layer(packed3, "packed3", shift3, "shift3");
  std::optional<CheckedLayer> down;
  check(packed_down.has_value() == shift_down.has_value(), kOp,
        ": packed_down and shift_down must be given together");
  if (packed_down.has_value()) {
    down = packed_layer(*packed_down, "packed_down", *shift_down, "shift_down");
  }
  return run_bottlenecks(
      x, {checked_bottleneck(
             {block_input(x, kOp), reduce, spatial, expand, down, stride, dilation, act}, groups,
             {"packed1", "packed2", "packed3", "packed_down"}, kOp)});
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("grouped_bottleneck", TORCH_BOX(&fastres::cpu::grouped_bottleneck));
}

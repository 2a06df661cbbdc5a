// grouped_bottleneck on the CPU: 1x1 -> 3x3 -> 1x1 -> + shortcut, an activation after each.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "packed_bottleneck.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "grouped_bottleneck";

Tensor grouped_bottleneck(const Tensor& x, const Tensor& packed1, const Tensor& shift1,
                          const Tensor& packed2, const Tensor& shift2, const Tensor& packed3,
                          const Tensor& shift3, const std::optional<Tensor>& packed_down,
                          const std::optional<Tensor>& shift_down,
                          const std::vector<int64_t>& stride, const std::vector<int64_t>& dilation,
                          int64_t groups, const std::string& act) {
  check(packed_down.has_value() == shift_down.has_value(), kOp,
        ": packed_down and shift_down must be given together");
  std::vector<Tensor> packed{packed1, packed2, packed3}, shift{shift1, shift2, shift3};
  if (packed_down.has_value()) {
    packed.push_back(*packed_down);
    shift.push_back(*shift_down);
  }
  return packed_bottleneck(x, {packed, shift, stride, dilation, groups}, act, kOp);
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("grouped_bottleneck", TORCH_BOX(&fastres::cpu::grouped_bottleneck));
}

// grouped_bottleneck on CUDA: 1x1 -> 3x3 -> 1x1 -> + shortcut, an activation after each.

#include <torch/csrc/stable/library.h>

#include "bottleneck.h"

namespace fastres::cuda {
namespace {

constexpr const char* kOp = "grouped_bottleneck";

Tensor grouped_bottleneck_on_cuda(const Tensor& x, const Tensor& packed1, const Tensor& shift1,
                                  const Tensor& packed2, const Tensor& shift2,
                                  const Tensor& packed3, const Tensor& shift3,
                                  const std::optional<Tensor>& packed_down,
                                  const std::optional<Tensor>& shift_down,
                                  const std::vector<int64_t>& stride,
                                  const std::vector<int64_t>& dilation, int64_t groups,
                                  const std::string& act) {
  check(packed_down.has_value() == shift_down.has_value(), kOp,
        ": packed_down and shift_down must be given together");
  const bool has_down = packed_down.has_value();
  const Tensor* packed[] = {&packed1, &packed2, &packed3, has_down ? &*packed_down : nullptr};
  const Tensor* shifts[] = {&shift1, &shift2, &shift3, has_down ? &*shift_down : nullptr};
  return bottleneck({x, has_down, stride, dilation, groups, act, kOp, "packed"},
                    [&](Part part, const std::string& suffix, Operands& operands, ConvGeometry& g,
                        ConvBnActArguments& a) {
                      const auto i = static_cast<size_t>(part);
                      packed_layer(operands, *packed[i], *shifts[i], kOp, suffix, g, a);
                    });
}

}  // namespace
}  // namespace fastres::cuda

STABLE_TORCH_LIBRARY_IMPL(fastres, CUDA, m) {
  m.impl("grouped_bottleneck", TORCH_BOX(&fastres::cuda::grouped_bottleneck_on_cuda));
}

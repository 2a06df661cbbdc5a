// live_bottleneck on CUDA: grouped_bottleneck of weights that are packed at each call.

#include <torch/csrc/stable/library.h>

#include "bottleneck.h"

namespace fastres::cuda {
namespace {

constexpr const char* kOp = "live_bottleneck";

Tensor live_bottleneck_on_cuda(
    const Tensor& x, const Tensor& weight1, const std::optional<Tensor>& scale1,
    const Tensor& shift1, const Tensor& weight2, const std::optional<Tensor>& scale2,
    const Tensor& shift2, const Tensor& weight3, const std::optional<Tensor>& scale3,
    const Tensor& shift3, const std::optional<Tensor>& weight_down,
    const std::optional<Tensor>& scale_down, const std::optional<Tensor>& shift_down,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& dilation, int64_t groups,
    const std::string& algorithm, const std::string& act) {
  check(weight_down.has_value() == shift_down.has_value(), kOp,
        ": weight_down and shift_down must be given together");
  const bool has_down = weight_down.has_value();
  const Tensor* weights[] = {&weight1, &weight2, &weight3, has_down ? &*weight_down : nullptr};
  const std::optional<Tensor>* scales[] = {&scale1, &scale2, &scale3, &scale_down};
  const Tensor* shifts[] = {&shift1, &shift2, &shift3, has_down ? &*shift_down : nullptr};
  return bottleneck({x, has_down, stride, dilation, groups, act, kOp, "weight"},
                    [&](Part part, const std::string& suffix, Operands& operands, ConvGeometry& g,
                        ConvBnActArguments& a) {
                      const auto i = static_cast<size_t>(part);
                      live_layer(operands, *weights[i], *scales[i], *shifts[i],
                                 part == Part::spatial ? algorithm : "direct", kOp, suffix, g, a);
                    });
}

}  // namespace
}  // namespace fastres::cuda

STABLE_TORCH_LIBRARY_IMPL(fastres, CUDA, m) {
  m.impl("live_bottleneck", TORCH_BOX(&fastres::cuda::live_bottleneck_on_cuda));
}

// live_conv_bn_act on the CPU: conv_bn_act of a weight that is packed while it convolves.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "conv_arguments.h"
#include "convolution/plain_tensor.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "live_conv_bn_act";

Tensor live_conv_bn_act(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
                        const Tensor& shift, const std::optional<Tensor>& residual,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, int64_t groups,
                        const std::string& algorithm, const std::string& act, double act_slope) {
  check_cpu(weight, kOp, "weight");
  const CheckedWeight source = checked_weight(weight, scale, groups, algorithm, kOp);
  return convolve({x, shift, residual, stride, padding, dilation, groups, act, act_slope},
                  {source.header,
                   {source.header.kernel_h, source.header.kernel_w},
                   nullptr,
                   source.plain,
                   "weight"},
                  kOp);
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("live_conv_bn_act", TORCH_BOX(&fastres::cpu::live_conv_bn_act));
}

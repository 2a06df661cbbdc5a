// live_conv_bn_act on CUDA: conv_bn_act of a weight that is packed at each call.

#include <torch/csrc/stable/library.h>

#include "convolve.h"

namespace fastres::cuda {
namespace {

constexpr const char* kOp = "live_conv_bn_act";

Tensor live_conv_bn_act_on_cuda(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale, const Tensor& shift,
    const std::optional<Tensor>& residual, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
    const std::string& algorithm, const std::string& act, double act_slope) {
  check_weight_to_pack(weight, groups, algorithm, kOp);
  const std::vector<int64_t> kernel{weight.size(2), weight.size(3)};
  return convolve({x, residual, kernel, stride, padding, dilation, groups, act, act_slope, kOp},
                  [&](Operands& operands, ConvGeometry& g, ConvBnActArguments& a) {
                    live_layer(operands, weight, scale, shift, algorithm, kOp, "", g, a);
                  });
}

}  // namespace
}  // namespace fastres::cuda

STABLE_TORCH_LIBRARY_IMPL(fastres, CUDA, m) {
  m.impl("live_conv_bn_act", TORCH_BOX(&fastres::cuda::live_conv_bn_act_on_cuda));
}

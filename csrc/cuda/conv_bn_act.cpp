// conv_bn_act on CUDA: act(conv(x) + shift + residual).

#include <torch/csrc/stable/library.h>

#include "convolve.h"

namespace fastres::cuda {
namespace {

constexpr const char* kOp = "conv_bn_act";

Tensor conv_bn_act_on_cuda(const Tensor& x, const Tensor& packed, const Tensor& shift,
                           const std::optional<Tensor>& residual,
                           const std::vector<int64_t>& kernel_size,
                           const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                           const std::vector<int64_t>& dilation, int64_t groups,
                           const std::string& act, double act_slope) {
  return convolve(
      {x, residual, kernel_size, stride, padding, dilation, groups, act, act_slope, kOp},
      [&](Operands& operands, ConvGeometry& g, ConvBnActArguments& a) {
        packed_layer(operands, packed, shift, kOp, "", g, a);
      });
}

}  // namespace
}  // namespace fastres::cuda

STABLE_TORCH_LIBRARY_IMPL(fastres, CUDA, m) {
  m.impl("conv_bn_act", TORCH_BOX(&fastres::cuda::conv_bn_act_on_cuda));
}

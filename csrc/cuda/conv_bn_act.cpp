// conv_bn_act on CUDA: act(conv(x) + shift + residual).

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "executor.h"
#include "inference.h"

namespace fastres::cuda {
namespace {

constexpr const char* kOp = "conv_bn_act";

Tensor conv_bn_act_on_cuda(const Tensor& x, const Tensor& packed, const Tensor& shift,
                           const std::optional<Tensor>& residual,
                           const std::vector<int64_t>& kernel_size,
                           const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                           const std::vector<int64_t>& dilation, int64_t groups,
                           const std::string& act, double act_slope) {
  check_input(x, kOp);
  Operands operands(x, kOp, "x");
  ConvGeometry g;
  g.batch = x.size(0);
  g.in_channels = x.size(1);
  g.in = {x.size(2), x.size(3)};
  g.kernel = positive_pair(kernel_size, kOp, "kernel_size");
  g.stride = positive_pair(stride, kOp, "stride");
  g.dilation = positive_pair(dilation, kOp, "dilation");
  g.padding = padding_of(padding, kOp);
  g.groups = groups;

  ConvBnActArguments a{};
  a.act = activation_of(act, kOp);
  a.act_slope = static_cast<float>(act_slope);
  layer_arguments(operands, packed, shift, kOp, "", g, a);
  a.x = operands.image(x, "x");
  if (residual.has_value()) {
    check_residual(*residual, x, g, kOp);
    a.residual = operands.image(*residual, "residual");
  }
  Tensor out = operands.empty_image(g.batch, g.out_channels, g.out, x.scalar_type());
  a.out = out.mutable_data_ptr();
  TorchExecutor executor(x);
  conv_bn_act(executor, dtype_of(x), g, a);
  return out;
}

}  // namespace
}  // namespace fastres::cuda

STABLE_TORCH_LIBRARY_IMPL(fastres, CUDA, m) {
  m.impl("conv_bn_act", TORCH_BOX(&fastres::cuda::conv_bn_act_on_cuda));
}

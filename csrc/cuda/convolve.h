// What conv_bn_act and live_conv_bn_act share: all but where the weight comes from.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "executor.h"
#include "inference.h"

namespace fastres::cuda {

struct ConvolveArguments {
  const Tensor& x;
  const std::optional<Tensor>& residual;
  const std::vector<int64_t>& kernel_size;
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& padding;
  const std::vector<int64_t>& dilation;
  int64_t groups;
  const std::string& act;
  double act_slope;
  const char* op;
};

// `fill(operands, geometry, arguments)` checks the weight and the shift and fills in the output's
// sizes.
template <class Fill>
Tensor convolve(const ConvolveArguments& c, const Fill& fill) {
  const Tensor& x = c.x;
  check_input(x, c.op);
  Operands operands(x, c.op, "x");
  ConvGeometry g;
  g.batch = x.size(0);
  g.in_channels = x.size(1);
  g.in = {x.size(2), x.size(3)};
  g.kernel = positive_pair(c.kernel_size, c.op, "kernel_size");
  g.stride = positive_pair(c.stride, c.op, "stride");
  g.dilation = positive_pair(c.dilation, c.op, "dilation");
  g.padding = padding_of(c.padding, c.op);
  g.groups = c.groups;

  ConvBnActArguments a{};
  a.act = activation_of(c.act, c.op);
  a.act_slope = static_cast<float>(c.act_slope);
  fill(operands, g, a);
  a.x = operands.image(x, "x");
  if (c.residual.has_value()) {
    check_residual(*c.residual, x, g, c.op);
    a.residual = operands.image(*c.residual, "residual");
  }
  Tensor out = operands.empty_image(g.batch, g.out_channels, g.out, x.scalar_type());
  a.out = out.mutable_data_ptr();
  TorchExecutor executor(x);
  conv_bn_act(executor, dtype_of(x), g, a);
  return out;
}

}  // namespace fastres::cuda

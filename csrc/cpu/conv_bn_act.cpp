// conv_bn_act on the CPU: act(conv(x) + shift + residual).

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "allocate.h"
#include "conv.h"
#include "tensor_image.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "conv_bn_act";

Tensor conv_bn_act(const Tensor& x, const Tensor& packed, const Tensor& shift,
                   const std::optional<Tensor>& residual, const std::vector<int64_t>& kernel_size,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, int64_t groups, const std::string& act,
                   double act_slope) {
  check_input(x, kOp);
  Conv conv;
  ConvGeometry& g = conv.geometry;
  g.batch = x.size(0);
  g.in_channels = x.size(1);
  g.in = {x.size(2), x.size(3)};
  g.kernel = positive_pair(kernel_size, kOp, "kernel_size");
  g.stride = positive_pair(stride, kOp, "stride");
  g.dilation = positive_pair(dilation, kOp, "dilation");
  g.padding = padding_of(padding, kOp);
  g.groups = groups;

  check_cpu(packed, kOp, "packed");
  const PackedHeader header = packed_header(packed, kOp, "packed");
  check_packed(header, {g.in_channels, g.kernel, groups}, kOp, "packed");
  check_algorithm(header, g.stride, g.dilation, kOp, "packed");
  g.out_channels = header.out_channels;
  set_output_size(g, kOp);
  check_cpu(shift, kOp, "shift");
  check_shift(shift, g.out_channels, kOp, "shift");
  const Tensor dense_shift = torch::stable::contiguous(shift);

  conv.layer = {header,
                packed_payload(packed.const_data_ptr()),
                dense_shift.const_data_ptr<float>(),
                g.stride,
                g.dilation,
                activation_of(act, kOp),
                static_cast<float>(act_slope)};
  conv.x = image_of(x);
  if (residual.has_value()) {
    check_cpu(*residual, kOp, "residual");
    check_residual(*residual, x, g, kOp);
    conv.residual = image_of(*residual);
  }
  Tensor out = empty_nhwc(g.batch, g.out_channels, g.out, x.scalar_type(), x);
  conv.out = image_of(out);
  run_conv(selected_microkernels(), conv);
  return out;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("conv_bn_act", TORCH_BOX(&fastres::cpu::conv_bn_act));
}

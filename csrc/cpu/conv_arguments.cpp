#include "conv_arguments.h"

#include "convolution/conv_winograd.h"
#include "convolution/split_rows.h"
#include "runtime/allocate.h"

namespace fastres::cpu {

Conv checked_conv(const ConvArguments& a, const ConvWeight& weight, const char* op,
                  Tensor& dense_shift) {
  check_input(a.x, op);
  const PackedHeader& header = weight.header;
  Conv conv;
  ConvGeometry& g = conv.geometry;
  g.batch = a.x.size(0);
  g.in_channels = a.x.size(1);
  g.in = {a.x.size(2), a.x.size(3)};
  g.kernel = weight.kernel;
  g.stride = positive_pair(a.stride, op, "stride");
  g.dilation = positive_pair(a.dilation, op, "dilation");
  g.padding = padding_of(a.padding, op);
  g.groups = a.groups;
  check_packed(header, {g.in_channels, g.kernel, g.groups}, op, weight.name);
  check_algorithm(header, g.stride, g.dilation, op, weight.name);
  g.out_channels = header.out_channels;
  set_output_size(g, op);
  check_cpu(a.shift, op, "shift");
  check_shift(a.shift, g.out_channels, op, "shift");
  dense_shift = as_contiguous(a.shift);

  conv.layer.header = header;
  conv.layer.weights = weight.packed;
  conv.layer.shift = dense_shift.const_data_ptr<float>();
  conv.layer.stride = g.stride;
  conv.layer.dilation = g.dilation;
  conv.layer.act = activation_of(a.act, op);
  conv.layer.act_slope = static_cast<float>(a.act_slope);
  conv.plain = weight.plain;
  conv.x = image_of(a.x);
  if (a.residual.has_value()) {
    check_cpu(*a.residual, op, "residual");
    check_residual(*a.residual, a.x, g, op);
    conv.residual = image_of(*a.residual);
  }
  return conv;
}

Tensor convolve(const ConvArguments& a, const ConvWeight& weight, const char* op) {
  Tensor dense_shift = a.shift;
  Conv conv = checked_conv(a, weight, op, dense_shift);
  const ConvGeometry& g = conv.geometry;
  Tensor out = empty_nhwc(g.batch, g.out_channels, g.out, a.x.scalar_type(), a.x);
  conv.out = image_of(out);
  if (conv.plain.data != nullptr) set_live_layout(conv.layer, conv.x.type, g.batch, g.out);
  run_conv(kernels_for(conv.x.type, conv.layer), conv);
  return out;
}

}  // namespace fastres::cpu

// grouped_bottleneck on CUDA: 1x1 -> 3x3 -> 1x1 -> + shortcut, an activation after each, a launch
// each.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "executor.h"
#include "inference.h"

namespace fastres::cuda {
namespace {

constexpr const char* kOp = "grouped_bottleneck";
constexpr float kLeakySlope = 0.01F;

Layer layer_of(Operands& operands, const Tensor& packed, const Tensor& shift,
               const std::string& suffix, const ConvGeometry& geometry, Activation act) {
  Layer layer{geometry, {}};
  layer.arguments.act = act;
  layer.arguments.act_slope = kLeakySlope;
  layer_arguments(operands, packed, shift, kOp, suffix, layer.geometry, layer.arguments);
  return layer;
}

ConvGeometry pointwise(int64_t batch, int64_t channels, Extent in, Extent stride) {
  ConvGeometry g;
  g.batch = batch;
  g.in_channels = channels;
  g.in = in;
  g.stride = stride;
  g.dilation = {1, 1};
  return g;
}

Tensor grouped_bottleneck_on_cuda(const Tensor& x, const Tensor& packed1, const Tensor& shift1,
                                  const Tensor& packed2, const Tensor& shift2,
                                  const Tensor& packed3, const Tensor& shift3,
                                  const std::optional<Tensor>& packed_down,
                                  const std::optional<Tensor>& shift_down,
                                  const std::vector<int64_t>& stride,
                                  const std::vector<int64_t>& dilation, int64_t groups,
                                  const std::string& act) {
  check_input(x, kOp);
  Operands operands(x, kOp, "x");
  const Activation activation = activation_of(act, kOp);
  const int64_t batch = x.size(0);
  const Layer reduce =
      layer_of(operands, packed1, shift1, "1",
               pointwise(batch, x.size(1), {x.size(2), x.size(3)}, {1, 1}), activation);

  ConvGeometry g = pointwise(batch, reduce.geometry.out_channels, reduce.geometry.out,
                             positive_pair(stride, kOp, "stride"));
  g.kernel = {3, 3};
  g.dilation = positive_pair(dilation, kOp, "dilation");
  g.padding = {g.dilation.h, g.dilation.h, g.dilation.w, g.dilation.w};
  g.groups = groups;
  const Layer spatial = layer_of(operands, packed2, shift2, "2", g, activation);
  const Extent out_size = spatial.geometry.out;
  Layer expand =
      layer_of(operands, packed3, shift3, "3",
               pointwise(batch, spatial.geometry.out_channels, out_size, {1, 1}), activation);

  check(packed_down.has_value() == shift_down.has_value(), kOp,
        ": packed_down and shift_down must be given together");
  const int64_t out_channels = expand.geometry.out_channels;
  std::optional<Layer> down;
  if (packed_down.has_value()) {
    down =
        layer_of(operands, *packed_down, *shift_down, "_down",
                 pointwise(batch, x.size(1), {x.size(2), x.size(3)}, g.stride), Activation::none);
    check(down->geometry.out_channels == out_channels, kOp, ": packed_down must have the ",
          out_channels, " output channels of packed3, got ", down->geometry.out_channels);
  } else {
    check(out_channels == x.size(1) && out_size.h == x.size(2) && out_size.w == x.size(3), kOp,
          ": without packed_down the output [", batch, ", ", out_channels, ", ", out_size.h, ", ",
          out_size.w, "] must have x's shape ", shape_string(x));
  }
  Tensor out = operands.empty_image(batch, out_channels, out_size, x.scalar_type());
  expand.arguments.out = out.mutable_data_ptr();
  TorchExecutor executor(x);
  grouped_bottleneck(executor, dtype_of(x), operands.image(x, "x"), reduce, spatial, expand,
                     down.has_value() ? &*down : nullptr);
  return out;
}

}  // namespace
}  // namespace fastres::cuda

STABLE_TORCH_LIBRARY_IMPL(fastres, CUDA, m) {
  m.impl("grouped_bottleneck", TORCH_BOX(&fastres::cuda::grouped_bottleneck_on_cuda));
}

#include "bottleneck.h"

namespace fastres::cuda {
namespace {

constexpr float kLeakySlope = 0.01F;

ConvGeometry pointwise(int64_t batch, int64_t channels, Extent in, Extent stride) {
  ConvGeometry g;
  g.batch = batch;
  g.in_channels = channels;
  g.in = in;
  g.stride = stride;
  g.dilation = {1, 1};
  return g;
}

}  // namespace

Tensor bottleneck(const BottleneckArguments& a, const FillLayer& fill) {
  const Tensor& x = a.x;
  check_input(x, a.op);
  Operands operands(x, a.op, "x");
  const Activation activation = activation_of(a.act, a.op);
  const int64_t batch = x.size(0);
  const Extent in{x.size(2), x.size(3)};
  const auto layer_of = [&](Part part, const char* suffix, const ConvGeometry& geometry,
                            Activation act) {
    Layer layer{geometry, {}};
    layer.arguments.act = act;
    layer.arguments.act_slope = kLeakySlope;
    fill(part, suffix, operands, layer.geometry, layer.arguments);
    return layer;
  };
  const Layer reduce =
      layer_of(Part::reduce, "1", pointwise(batch, x.size(1), in, {1, 1}), activation);

  ConvGeometry g = pointwise(batch, reduce.geometry.out_channels, reduce.geometry.out,
                             positive_pair(a.stride, a.op, "stride"));
  g.kernel = {3, 3};
  g.dilation = positive_pair(a.dilation, a.op, "dilation");
  g.padding = {g.dilation.h, g.dilation.h, g.dilation.w, g.dilation.w};
  g.groups = a.groups;
  const Layer spatial = layer_of(Part::spatial, "2", g, activation);
  const Extent out_size = spatial.geometry.out;
  Layer expand =
      layer_of(Part::expand, "3", pointwise(batch, spatial.geometry.out_channels, out_size, {1, 1}),
               activation);
  const int64_t out_channels = expand.geometry.out_channels;
  std::optional<Layer> down;
  if (a.has_down) {
    down =
        layer_of(Part::down, "_down", pointwise(batch, x.size(1), in, g.stride), Activation::none);
    check(down->geometry.out_channels == out_channels, a.op, ": ", a.weight_name,
          "_down must have the ", out_channels, " output channels of ", a.weight_name, "3, got ",
          down->geometry.out_channels);
  } else {
    check(out_channels == x.size(1) && out_size.h == in.h && out_size.w == in.w, a.op, ": without ",
          a.weight_name, "_down the output [", batch, ", ", out_channels, ", ", out_size.h, ", ",
          out_size.w, "] must have x's shape ", ShapeOf{x});
  }
  Tensor out = operands.empty_image(batch, out_channels, out_size, x.scalar_type());
  expand.arguments.out = out.mutable_data_ptr();
  TorchExecutor executor(x);
  grouped_bottleneck(executor, dtype_of(x), operands.image(x, "x"), reduce, spatial, expand,
                     down.has_value() ? &*down : nullptr);
  return out;
}

}  // namespace fastres::cuda

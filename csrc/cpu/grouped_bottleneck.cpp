// grouped_bottleneck on the CPU: 1x1 -> 3x3 -> 1x1 -> + shortcut, an activation after each.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "allocate.h"
#include "bottleneck.h"
#include "conv.h"
#include "tensor_image.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "grouped_bottleneck";
constexpr float kLeakySlope = 0.01F;

// A packed weight and its shift, checked; keeps the tensors alive that the layer points into.
struct CheckedLayer {
  ConvLayer layer;
  Tensor packed, shift;
};

CheckedLayer checked_layer(const Tensor& packed, const Tensor& shift,
                           const ExpectedWeight& expected, const std::string& suffix) {
  const std::string packed_name = "packed" + suffix;
  const std::string shift_name = "shift" + suffix;
  check_cpu(packed, kOp, packed_name.c_str());
  check_cpu(shift, kOp, shift_name.c_str());
  const PackedHeader header = packed_header(packed, kOp, packed_name.c_str());
  check_packed(header, expected, kOp, packed_name.c_str());
  check_shift(shift, header.out_channels, kOp, shift_name.c_str());
  const Tensor dense_shift = torch::stable::contiguous(shift);
  ConvLayer layer;
  layer.header = header;
  layer.weights = packed_payload(packed.const_data_ptr());
  layer.shift = dense_shift.const_data_ptr<float>();
  return {layer, packed, dense_shift};
}

ConvGeometry geometry_of(const Bottleneck& block, const ConvLayer& layer, Extent in,
                         int64_t padding_scale) {
  ConvGeometry g;
  const PackedHeader& h = layer.header;
  g.batch = block.batch;
  g.in_channels = int64_t{h.group_in_channels} * h.groups;
  g.in = in;
  g.out_channels = h.out_channels;
  g.kernel = {h.kernel_h, h.kernel_w};
  g.stride = layer.stride;
  g.dilation = layer.dilation;
  const int64_t pad_h = layer.dilation.h * padding_scale;
  const int64_t pad_w = layer.dilation.w * padding_scale;
  g.padding = {pad_h, pad_h, pad_w, pad_w};
  g.groups = h.groups;
  set_output_size(g, kOp);
  return g;
}

// Layer by layer: for small images with large weights, where every thread of a depth-first order
// would read all weights, and would compute much of the inner activation twice.
class LayerByLayer {
 public:
  LayerByLayer(const Microkernels& kernels, const Bottleneck& block, const Tensor& x)
      : kernels_(kernels), block_(block), x_(x) {}

  void run() const {
    Tensor inner1 = inner(block_.reduce, block_.in);
    run(block_.reduce, block_.x, block_.in, image_of(inner1), {});
    Tensor inner2 = inner(block_.spatial, block_.out);
    run(block_.spatial, image_of(inner1), block_.in, image_of(inner2), {});
    if (!block_.down.has_value()) {
      return run(block_.expand, image_of(inner2), block_.out, block_.y, block_.x);
    }
    Tensor shortcut = inner(*block_.down, block_.out);
    run(*block_.down, block_.x, block_.in, image_of(shortcut), {});
    run(block_.expand, image_of(inner2), block_.out, block_.y, image_of(shortcut));
  }

 private:
  Tensor inner(const ConvLayer& layer, Extent size) const {
    return empty_nhwc(block_.batch, layer.header.out_channels, size, ScalarType::Float, x_);
  }

  void run(const ConvLayer& layer, const Image& in, Extent in_size, const Image& out,
           const Image& residual) const {
    const int64_t padding = layer.header.kernel_h == 3 ? 1 : 0;
    run_conv(kernels_,
             {geometry_of(block_, layer, in_size, padding), layer, {}, in, residual, out});
  }

  const Microkernels& kernels_;
  const Bottleneck& block_;
  const Tensor& x_;
};

// Depth-first saves the inner activations' way to the shared cache and back, and costs two things:
// each thread computes the inner rows above and below its share, and reads all weights per band.
bool prefers_depth_first(const Bottleneck& block) {
  const double rows_per_thread =
      static_cast<double>(block.batch * block.out.h) / static_cast<double>(thread_count());
  const double halo_rows = 2.0 * static_cast<double>(block.dilation.h);
  return rows_per_thread >= 6.0 * halo_rows && block.out.h * block.out.w >= 196;
}

Tensor grouped_bottleneck(const Tensor& x, const Tensor& packed1, const Tensor& shift1,
                          const Tensor& packed2, const Tensor& shift2, const Tensor& packed3,
                          const Tensor& shift3, const std::optional<Tensor>& packed_down,
                          const std::optional<Tensor>& shift_down,
                          const std::vector<int64_t>& stride, const std::vector<int64_t>& dilation,
                          int64_t groups, const std::string& act) {
  check_input(x, kOp);
  Bottleneck block;
  block.batch = x.size(0);
  block.in = {x.size(2), x.size(3)};
  block.stride = positive_pair(stride, kOp, "stride");
  block.dilation = positive_pair(dilation, kOp, "dilation");
  const Activation activation = activation_of(act, kOp);
  const auto configure = [&](ConvLayer layer, Extent layer_stride, Extent layer_dilation,
                             Activation layer_act) {
    layer.stride = layer_stride;
    layer.dilation = layer_dilation;
    layer.act = layer_act;
    layer.act_slope = kLeakySlope;
    return layer;
  };

  const CheckedLayer reduce = checked_layer(packed1, shift1, {x.size(1), {1, 1}, 1}, "1");
  const CheckedLayer spatial =
      checked_layer(packed2, shift2, {reduce.layer.header.out_channels, {3, 3}, groups}, "2");
  const CheckedLayer expand =
      checked_layer(packed3, shift3, {spatial.layer.header.out_channels, {1, 1}, 1}, "3");
  check_algorithm(spatial.layer.header, block.stride, block.dilation, kOp, "packed2");
  block.reduce = configure(reduce.layer, {1, 1}, {1, 1}, activation);
  block.spatial = configure(spatial.layer, block.stride, block.dilation, activation);
  block.expand = configure(expand.layer, {1, 1}, {1, 1}, activation);

  block.out = geometry_of(block, block.spatial, block.in, 1).out;
  const int64_t out_channels = block.expand.header.out_channels;
  std::optional<CheckedLayer> down;
  check(packed_down.has_value() == shift_down.has_value(), kOp,
        ": packed_down and shift_down must be given together");
  if (packed_down.has_value()) {
    down = checked_layer(*packed_down, *shift_down, {x.size(1), {1, 1}, 1}, "_down");
    check(down->layer.header.out_channels == out_channels, kOp, ": packed_down must have the ",
          out_channels, " output channels of packed3, got ", down->layer.header.out_channels);
    block.down = configure(down->layer, block.stride, {1, 1}, Activation::none);
  } else {
    check(out_channels == x.size(1) && block.out.h == block.in.h && block.out.w == block.in.w, kOp,
          ": without packed_down the output [", block.batch, ", ", out_channels, ", ", block.out.h,
          ", ", block.out.w, "] must have x's shape ", shape_string(x));
  }

  Tensor y = empty_nhwc(block.batch, out_channels, block.out, x.scalar_type(), x);
  block.x = image_of(x);
  block.y = image_of(y);
  const Microkernels& kernels = selected_microkernels();
  if (prefers_depth_first(block)) {
    run_depth_first(kernels, block);
  } else {
    LayerByLayer(kernels, block, x).run();
  }
  return y;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("grouped_bottleneck", TORCH_BOX(&fastres::cpu::grouped_bottleneck));
}

#include "bottleneck_arguments.h"

#include <optional>
#include <utility>
#include <vector>

#include "convolution/conv_winograd.h"
#include "convolution/pooled_image.h"
#include "convolution/split_rows.h"
#include "runtime/allocate.h"

namespace fastres::cpu {
namespace {

constexpr float kLeakySlope = 0.01F;

// Of the 3x3, which is padded by its dilation.
Extent output_size(const Bottleneck& block, const char* op) {
  ConvGeometry g;
  g.in = block.in;
  g.kernel = {3, 3};
  g.stride = block.stride;
  g.dilation = block.dilation;
  g.padding = {g.dilation.h, g.dilation.h, g.dilation.w, g.dilation.w};
  set_output_size(g, op);
  return g.out;
}

BottleneckLayer configured(const CheckedLayer& checked, Extent stride, Extent dilation,
                           Activation act) {
  BottleneckLayer layer = checked.layer;
  layer.stride = stride;
  layer.dilation = dilation;
  layer.act = act;
  layer.act_slope = kLeakySlope;
  return layer;
}

// Sets what depends on the sizes of all: the layouts of weights that are packed at each call, and
// the outputs that a layer's bands share.
void fit_layers(Bottleneck& block, StorageType type) {
  const auto fit = [&](BottleneckLayer& layer, Extent out) {
    if (layer.plain.data != nullptr) set_live_layout(layer, type, block.batch, block.out);
    layer.outputs = shared_outputs(layer.header, block.batch, out);
  };
  fit(block.reduce, block.in);
  fit(block.spatial, block.out);
  fit(block.expand, block.out);
  if (block.down.has_value()) fit(*block.down, block.out);
}

void check_shortcut(const BottleneckArguments& a, const Bottleneck& block, const WeightNames& names,
                    const char* op) {
  const int64_t out_channels = a.expand.layer.header.out_channels;
  const BlockInput& x = a.x;
  if (a.down.has_value()) {
    check_packed(a.down->layer.header, {x.channels, {1, 1}, 1}, op, names.down);
    check(a.down->layer.header.out_channels == out_channels, op, ": ", names.down,
          " must have the ", out_channels, " output channels of ", names.expand, ", got ",
          a.down->layer.header.out_channels);
    return;
  }
  check(out_channels == x.channels && block.out.h == block.in.h && block.out.w == block.in.w, op,
        ": without ", names.down, " the output [", block.batch, ", ", out_channels, ", ",
        block.out.h, ", ", block.out.w, "] must have x's shape [", x.batch, ", ", x.channels, ", ",
        x.size.h, ", ", x.size.w, "]");
}

}  // namespace

CheckedLayer plain_layer(CheckedWeight source) {
  CheckedLayer checked;
  checked.layer.header = source.header;
  checked.layer.plain = source.plain;
  checked.kept = std::move(source.kept);
  return checked;
}

void set_shift(CheckedLayer& checked, const Tensor& shift, const char* op, const char* name) {
  check_cpu(shift, op, name);
  check_shift(shift, checked.layer.header.out_channels, op, name);
  checked.kept.push_back(as_contiguous(shift));
  checked.layer.shift = checked.kept.back().const_data_ptr<float>();
}

BlockInput block_input(const Tensor& x, const char* op) {
  check_input(x, op);
  return {x.size(0), x.size(1), {x.size(2), x.size(3)}, storage_type(x)};
}

CheckedBottleneck checked_bottleneck(const BottleneckArguments& a, int64_t groups,
                                     const WeightNames& names, const char* op) {
  CheckedBottleneck checked;
  Bottleneck& block = checked.block;
  block.batch = a.x.batch;
  block.in = a.x.size;
  block.stride = positive_pair(a.stride, op, "stride");
  block.dilation = positive_pair(a.dilation, op, "dilation");
  const Activation activation = activation_of(a.act, op);

  check_packed(a.reduce.layer.header, {a.x.channels, {1, 1}, 1}, op, names.reduce);
  check_packed(a.spatial.layer.header, {a.reduce.layer.header.out_channels, {3, 3}, groups}, op,
               names.spatial);
  check_packed(a.expand.layer.header, {a.spatial.layer.header.out_channels, {1, 1}, 1}, op,
               names.expand);
  check_algorithm(a.spatial.layer.header, block.stride, block.dilation, op, names.spatial);
  block.out = output_size(block, op);
  check_shortcut(a, block, names, op);

  const auto add = [&](const CheckedLayer& layer, Extent stride, Extent dilation, Activation act) {
    checked.kept.insert(checked.kept.end(), layer.kept.begin(), layer.kept.end());
    return configured(layer, stride, dilation, act);
  };
  block.reduce = add(a.reduce, {1, 1}, {1, 1}, activation);
  block.spatial = add(a.spatial, block.stride, block.dilation, activation);
  block.expand = add(a.expand, {1, 1}, {1, 1}, activation);
  if (a.down.has_value()) block.down = add(*a.down, block.stride, {1, 1}, Activation::none);
  fit_layers(block, a.x.type);
  checked.kernels = &kernels_for(a.x.type, block.spatial);
  checked.depth_first = prefers_depth_first(*checked.kernels, block);
  return checked;
}

BlockInput next_input(const Tensor& x, const std::vector<CheckedBottleneck>& blocks,
                      const char* op) {
  if (blocks.empty()) return block_input(x, op);
  const Bottleneck& last = blocks.back().block;
  return {last.batch, last.expand.header.out_channels, last.out, storage_type(x)};
}

Tensor run_bottlenecks(const Tensor& x, const std::vector<CheckedBottleneck>& blocks) {
  Image in = image_of(x);
  std::optional<PooledImage> between[2];
  Tensor y;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto& [checked, kernels, depth_first, kept] = blocks[i];
    Bottleneck block = checked;
    block.x = in;
    if (i + 1 < blocks.size()) {
      block.y = between[i % 2]
                    .emplace(block.batch, block.expand.header.out_channels, block.out, in.type)
                    .image();
    } else {
      y = empty_nhwc(block.batch, block.expand.header.out_channels, block.out, x.scalar_type(), x);
      block.y = image_of(y);
    }
    run_bottleneck(*kernels, block, depth_first);
    between[(i + 1) % 2].reset();
    in = block.y;
  }
  return y;
}

}  // namespace fastres::cpu

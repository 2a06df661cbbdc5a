#include "bottleneck_arguments.h"

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "convolution/bfloat16_weight.h"
#include "convolution/conv.h"
#include "convolution/conv_winograd.h"
#include "convolution/split_rows.h"
#include "convolution/weights.h"
#include "runtime/allocate.h"
#include "runtime/cache.h"

namespace fastres::cpu {
namespace {

constexpr float kLeakySlope = 0.01F;

ConvGeometry geometry_of(const Bottleneck& block, const ConvLayer& layer, Extent in,
                         int64_t padding_scale, const char* op) {
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
  set_output_size(g, op);
  return g;
}

// Layer by layer: for small images with large weights, where every thread of a depth-first order
// would read all weights, and would compute much of the inner activation twice.
class LayerByLayer {
 public:
  LayerByLayer(const Microkernels& kernels, const Bottleneck& block, const Tensor& x,
               const char* op)
      : kernels_(kernels), block_(block), x_(x), op_(op) {}

  void run() const {
    Tensor inner1 = inner(block_.reduce, block_.in, block_.spatial);
    run(block_.reduce, block_.x, block_.in, image_of(inner1), {});
    Tensor inner2 = inner(block_.spatial, block_.out, block_.expand);
    run(block_.spatial, image_of(inner1), block_.in, image_of(inner2), {});
    if (!block_.down.has_value()) {
      return run(block_.expand, image_of(inner2), block_.out, block_.y, block_.x);
    }
    Tensor shortcut = inner(*block_.down, block_.out, block_.expand);
    run(*block_.down, block_.x, block_.in, image_of(shortcut), {});
    run(block_.expand, image_of(inner2), block_.out, block_.y, image_of(shortcut));
  }

 private:
  // Float32, or bfloat16 where tiles write and read it.
  Tensor inner(const ConvLayer& layer, Extent size, const ConvLayer& next) const {
    const bool stored = multiplies_bfloat16(kernels_) && prefers_tiles(kernels_, layer, size.w) &&
                        prefers_tiles(kernels_, next, block_.out.w);
    return empty_nhwc(block_.batch, layer.header.out_channels, size,
                      stored ? ScalarType::BFloat16 : ScalarType::Float, x_);
  }

  void run(const BottleneckLayer& layer, const Image& in, Extent in_size, const Image& out,
           const Image& residual) const {
    const int64_t padding = layer.header.kernel_h == 3 ? 1 : 0;
    const ConvGeometry geometry = geometry_of(block_, layer, in_size, padding, op_);
    run_conv(kernels_, {geometry, layer, layer.plain, in, residual, out});
  }

  const Microkernels& kernels_;
  const Bottleneck& block_;
  const Tensor& x_;
  const char* op_;
};

// Depth-first saves the inner activations' way to the shared cache and back, and costs two things:
// each thread computes the inner rows above and below its share, and reads all weights per band.
// Matrix tiles split them, too: of a grouped block with large weights that takes longer than all
// the rest. (A dense one's time is in its 3x3.) Winograd's algorithm on tiles needs whole images.
bool prefers_depth_first(const Microkernels& kernels, const Bottleneck& block) {
  if (batches_winograd(kernels, block.spatial, block.batch, block.out)) return false;
  const bool splits =
      block.spatial.header.groups > 1 && prefers_tiles(kernels, block.reduce, block.in.w) &&
      weight_bytes(block.reduce) + weight_bytes(block.expand) >= level2_cache_bytes();
  if (splits) return false;
  const double rows_per_thread =
      static_cast<double>(block.batch * block.out.h) / static_cast<double>(thread_count());
  const double halo_rows = 2.0 * static_cast<double>(block.dilation.h);
  return rows_per_thread >= 6.0 * halo_rows && block.out.h * block.out.w >= 196;
}

// Room for what is not packed yet, or not as its kernel reads it, and the packing of it.
class PackedLayers {
 public:
  PackedLayers(const Microkernels& kernels, Bottleneck& block) {
    const auto widen = [&](BottleneckLayer& layer, int64_t pixels, size_t i) {
      widen_weight(kernels, layer, layer.plain, pixels, wide_[i]);
    };
    widen(block.reduce, block.in.w, 0);
    widen(block.spatial, block.out.w, 1);
    widen(block.expand, block.out.w, 2);
    if (block.down.has_value()) widen(*block.down, block.out.w, 3);
    std::vector<BottleneckLayer*> layers = {&block.reduce, &block.spatial, &block.expand};
    if (block.down.has_value()) layers.push_back(&*block.down);
    std::erase_if(layers, [](const auto* layer) { return layer->plain.data == nullptr; });
    if (layers.empty()) return;
    int64_t floats = 0;
    for (const BottleneckLayer* layer : layers) floats += layer->header.payload_floats();
    float* target = memory_.emplace(floats).data();
    for (size_t i = 0; i < layers.size(); ++i) {
      set_packed(kernels, layers[i]->plain, target, *layers[i], packing_[i]);
      target += layers[i]->header.payload_floats();
    }
  }

 private:
  std::array<std::optional<PooledFloats>, 4> wide_;
  std::optional<PooledFloats> memory_;
  std::array<std::optional<PackOnUse>, 4> packing_;
};

BottleneckLayer configured(const CheckedLayer& checked, Extent stride, Extent dilation,
                           Activation act) {
  BottleneckLayer layer = checked.layer;
  layer.stride = stride;
  layer.dilation = dilation;
  layer.act = act;
  layer.act_slope = kLeakySlope;
  return layer;
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

Tensor bottleneck(const BottleneckArguments& a, int64_t groups, const WeightNames& names,
                  const char* op) {
  check_input(a.x, op);
  Bottleneck block;
  block.batch = a.x.size(0);
  block.in = {a.x.size(2), a.x.size(3)};
  block.stride = positive_pair(a.stride, op, "stride");
  block.dilation = positive_pair(a.dilation, op, "dilation");
  const Activation activation = activation_of(a.act, op);

  check_packed(a.reduce.layer.header, {a.x.size(1), {1, 1}, 1}, op, names.reduce);
  check_packed(a.spatial.layer.header, {a.reduce.layer.header.out_channels, {3, 3}, groups}, op,
               names.spatial);
  check_packed(a.expand.layer.header, {a.spatial.layer.header.out_channels, {1, 1}, 1}, op,
               names.expand);
  check_algorithm(a.spatial.layer.header, block.stride, block.dilation, op, names.spatial);
  block.reduce = configured(a.reduce, {1, 1}, {1, 1}, activation);
  block.spatial = configured(a.spatial, block.stride, block.dilation, activation);
  block.expand = configured(a.expand, {1, 1}, {1, 1}, activation);
  block.out = geometry_of(block, block.spatial, block.in, 1, op).out;
  const StorageType type = storage_type(a.x);
  const auto set_layout = [&](BottleneckLayer& layer) {
    if (layer.plain.data != nullptr) set_live_layout(layer, type, block.batch, block.out);
  };
  set_layout(block.reduce);
  set_layout(block.spatial);
  set_layout(block.expand);
  const int64_t out_channels = block.expand.header.out_channels;
  if (a.down.has_value()) {
    check_packed(a.down->layer.header, {a.x.size(1), {1, 1}, 1}, op, names.down);
    check(a.down->layer.header.out_channels == out_channels, op, ": ", names.down,
          " must have the ", out_channels, " output channels of ", names.expand, ", got ",
          a.down->layer.header.out_channels);
    block.down = configured(*a.down, block.stride, {1, 1}, Activation::none);
    set_layout(*block.down);
  } else {
    check(out_channels == a.x.size(1) && block.out.h == block.in.h && block.out.w == block.in.w, op,
          ": without ", names.down, " the output [", block.batch, ", ", out_channels, ", ",
          block.out.h, ", ", block.out.w, "] must have x's shape ", ShapeOf{a.x});
  }

  block.reduce.outputs = shared_outputs(block.reduce.header, block.batch, block.in);
  block.spatial.outputs = shared_outputs(block.spatial.header, block.batch, block.out);
  block.expand.outputs = shared_outputs(block.expand.header, block.batch, block.out);
  if (block.down.has_value()) {
    block.down->outputs = shared_outputs(block.down->header, block.batch, block.out);
  }

  Tensor y = empty_nhwc(block.batch, out_channels, block.out, a.x.scalar_type(), a.x);
  block.x = image_of(a.x);
  block.y = image_of(y);
  const Microkernels& kernels = kernels_for(block.x.type, block.spatial);
  if (prefers_depth_first(kernels, block)) {
    const PackedLayers packed(kernels, block);
    run_depth_first(kernels, block);
  } else {
    LayerByLayer(kernels, block, a.x, op).run();
  }
  return y;
}

}  // namespace fastres::cpu

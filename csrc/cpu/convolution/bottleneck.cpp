#include "bottleneck.h"

#include <array>
#include <optional>
#include <vector>

#include "../runtime/cache.h"
#include "bfloat16_weight.h"
#include "conv.h"
#include "conv_winograd.h"
#include "depth_first.h"
#include "pooled_image.h"
#include "split_rows.h"

namespace fastres::cpu {
namespace {

// Layer by layer: for small images with large weights, where every thread of a depth-first order
// would read all weights, and would compute much of the inner activation twice.
class LayerByLayer {
 public:
  LayerByLayer(const Microkernels& kernels, const Bottleneck& block)
      : kernels_(kernels), block_(block) {}

  void run() const {
    const PooledImage inner1 = inner(block_.reduce, block_.in, block_.spatial);
    run(block_.reduce, block_.x, inner1.image(), {});
    const PooledImage inner2 = inner(block_.spatial, block_.out, block_.expand);
    run(block_.spatial, inner1.image(), inner2.image(), {});
    if (!block_.down.has_value()) {
      return run(block_.expand, inner2.image(), block_.y, block_.x);
    }
    const PooledImage shortcut = inner(*block_.down, block_.out, block_.expand);
    run(*block_.down, block_.x, shortcut.image(), {});
    run(block_.expand, inner2.image(), block_.y, shortcut.image());
  }

 private:
  // Float32, or bfloat16 where tiles write and read it.
  PooledImage inner(const ConvLayer& layer, Extent size, const ConvLayer& next) const {
    const bool stored = multiplies_bfloat16(kernels_) && prefers_tiles(kernels_, layer, size.w) &&
                        prefers_tiles(kernels_, next, block_.out.w);
    return {block_.batch, layer.header.out_channels, size,
            stored ? StorageType::bfloat16 : StorageType::float32};
  }

  void run(const BottleneckLayer& layer, const Image& in, const Image& out,
           const Image& residual) const {
    const PackedHeader& h = layer.header;
    ConvGeometry g;
    g.batch = block_.batch;
    g.in_channels = in.channels;
    g.in = {in.height, in.width};
    g.out_channels = out.channels;
    g.out = {out.height, out.width};
    g.kernel = {h.kernel_h, h.kernel_w};
    g.stride = layer.stride;
    g.dilation = layer.dilation;
    if (h.taps() > 1) {
      const Extent d = layer.dilation;
      g.padding = {d.h, d.h, d.w, d.w};
    }
    g.groups = h.groups;
    run_conv(kernels_, {g, layer, layer.plain, in, residual, out});
  }

  const Microkernels& kernels_;
  const Bottleneck& block_;
};

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

}  // namespace

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

void run_bottleneck(const Microkernels& kernels, const Bottleneck& block, bool depth_first) {
  if (!depth_first) return LayerByLayer(kernels, block).run();
  Bottleneck packed = block;
  const PackedLayers layers(kernels, packed);
  run_depth_first(kernels, packed);
}

}  // namespace fastres::cpu

#include "conv_winograd.h"

#include <algorithm>

#include "../runtime/cache.h"
#include "../runtime/scratch.h"
#include "split_rows.h"
#include "winograd_batch.h"

namespace fastres::cpu {
namespace {

// Some rows of some images.
class Batch {
 public:
  // `layer` is the convolution's, with the outputs of all batches.
  Batch(const Microkernels& kernels, const Conv& conv, const ConvLayer& layer, Range images,
        Range rows)
      : kernels_(kernels),
        conv_(conv),
        layer_(layer),
        first_image_(images.begin),
        first_row_(rows.begin),
        out_{rows.size(), conv.geometry.out.w},
        input_(images.size(), out_, conv.geometry.in_channels),
        products_(images.size(), out_, conv.geometry.out_channels),
        slices_(tile_slices(images.size(), out_,
                            conv.geometry.padded_width() * conv.geometry.in_channels,
                            thread_count())) {}

  void run() const {
    parallel_parts(slices_.count(), [&](int64_t i) { load(slices_[i]); });
    multiply_tiles(kernels_, layer_, input_.all(), products_.all());
    parallel_parts(slices_.count(), [&](int64_t i) { finish(slices_[i]); });
  }

 private:
  void load(const Slices::Slice& slice) const {
    const ConvGeometry& g = conv_.geometry;
    const PaddedRows what =
        padded_rows(g, first_image_ + slice.image, first_row_ + slice.row, slice.rows);
    float* target = thread_scratch().input.floats(what.rows * g.padded_width() * conv_.x.channels);
    const Band band = load_band(kernels_, conv_.x, what, target, conv_.x.channels);
    kernels_.winograd_input(input_.of(slice), band.data, band.row_stride, band.pixel_stride,
                            what.rows, g.padded_width());
  }

  void finish(const Slices::Slice& slice) const {
    const int64_t n = first_image_ + slice.image, row = first_row_ + slice.row;
    const Range channels{0, conv_.geometry.out_channels};
    const OutputRows output(kernels_, conv_.out, n, row, slice.rows);
    ConvBand band;
    band.rows = slice.rows;
    band.pixels = out_.w;
    band.output = output.band();
    if (conv_.residual.data != nullptr) {
      band.residual = float_rows(kernels_, conv_.residual, n, {row, row + slice.rows},
                                 thread_scratch().residual);
    }
    winograd_outputs(kernels_, layer_, products_.of(slice), band, channels);
    output.store(channels);
  }

  const Microkernels& kernels_;
  const Conv& conv_;
  const ConvLayer& layer_;
  const int64_t first_image_, first_row_;
  const Extent out_;
  const TileBuffer input_, products_;
  const Slices slices_;
};

int64_t all_tiles(int64_t batch, Extent out) {
  return batch * ((out.h + 1) / 2) * ((out.w + 1) / 2);
}

// Smaller ones stay in the cache, and the buffers of a batch do not.
bool has_large_transform(const ConvLayer& layer) {
  return layer.header.layout == PackedLayout::winograd &&
         weight_bytes(layer) >= level2_cache_bytes();
}

}  // namespace

bool batches_winograd(const Microkernels& kernels, const ConvLayer& layer, int64_t batch,
                      Extent out) {
  if (!has_large_transform(layer)) return false;
  ConvLayer product = winograd_product(layer);
  product.outputs = all_tiles(batch, out);
  return prefers_tiles(kernels, product, 1);
}

void set_live_layout(ConvLayer& layer, StorageType type, int64_t batch, Extent out) {
  const Microkernels& kernels = selected_microkernels(type);
  PackedHeader& header = layer.header;
  const bool direct =
      multiplies_bfloat16(kernels) || (kernels.split != nullptr && has_large_transform(layer) &&
                                       !batches_winograd(kernels, layer, batch, out));
  if (direct && header.layout == PackedLayout::winograd) header.layout = PackedLayout::igemm;
  if (multiplies_bfloat16(kernels) && header.suits_bfloat16()) {
    header.layout = PackedLayout::bfloat16;
  }
}

void run_winograd_batches(const Microkernels& kernels, const Conv& conv) {
  const ConvGeometry& g = conv.geometry;
  ConvLayer layer = conv.layer;
  layer.outputs = all_tiles(g.batch, g.out);
  const int64_t channels = g.in_channels + g.out_channels;
  // Large images in parts of nearly equal height, which are pairs of rows.
  const int64_t pairs = (g.out.h + 1) / 2;
  const int64_t pairs_at_once = winograd_rows_at_once(g.out, channels) / 2;
  const int64_t parts = ceil_div(pairs, pairs_at_once);
  for_each_winograd_batch(g.batch, g.out, channels, [&](Range images) {
    for (int64_t i = 0; i < parts; ++i) {
      const Range pair = even_range(pairs, parts, i);
      const Range rows{2 * pair.begin, std::min(2 * pair.end, g.out.h)};
      Batch(kernels, conv, layer, images, rows).run();
    }
  });
}

}  // namespace fastres::cpu

#include "conv_winograd.h"

#include <algorithm>

#include "cache.h"
#include "scratch.h"
#include "split_rows.h"
#include "winograd_batch.h"

namespace fastres::cpu {
namespace {

// Some images, from the first on.
class Batch {
 public:
  Batch(const Microkernels& kernels, const Conv& conv, Range images)
      : kernels_(kernels),
        conv_(conv),
        first_(images.begin),
        input_(images.size(), conv.geometry.out, conv.geometry.in_channels),
        products_(images.size(), conv.geometry.out, conv.geometry.out_channels),
        slices_(tile_slices(images.size(), conv.geometry.out,
                            conv.geometry.padded_width() * conv.geometry.in_channels)) {}

  void run() const {
    parallel_parts(slices_.count(), [&](int64_t i) { load(slices_[i]); });
    multiply_tiles(kernels_, conv_.layer, input_.all(), products_.all());
    parallel_parts(slices_.count(), [&](int64_t i) { finish(slices_[i]); });
  }

 private:
  void load(const Slices::Slice& slice) const {
    const ConvGeometry& g = conv_.geometry;
    const PaddedRows what = padded_rows(g, first_ + slice.image, slice.row, slice.rows);
    float* target = thread_scratch().input.floats(what.rows * g.padded_width() * conv_.x.channels);
    const Band band = load_band(kernels_, conv_.x, what, target, conv_.x.channels);
    kernels_.winograd_input(input_.of(slice), band.data, band.row_stride, band.pixel_stride,
                            what.rows, g.padded_width());
  }

  void finish(const Slices::Slice& slice) const {
    const int64_t n = first_ + slice.image;
    const Range channels{0, conv_.geometry.out_channels};
    const OutputRows output(kernels_, conv_.out, n, slice.row, slice.rows);
    ConvBand band;
    band.rows = slice.rows;
    band.pixels = conv_.geometry.out.w;
    band.output = output.band();
    if (conv_.residual.data != nullptr) {
      band.residual = float_rows(kernels_, conv_.residual, n, {slice.row, slice.row + slice.rows},
                                 thread_scratch().residual);
    }
    winograd_outputs(kernels_, conv_.layer, products_.of(slice), band, channels);
    output.store(channels);
  }

  const Microkernels& kernels_;
  const Conv& conv_;
  const int64_t first_;
  const TileBuffer input_, products_;
  const Slices slices_;
};

}  // namespace

bool batches_winograd(const Microkernels& kernels, const ConvLayer& layer, int64_t batch,
                      Extent out) {
  if (layer.header.layout != PackedLayout::winograd) return false;
  // Smaller weights stay in the cache, and the buffers do not.
  if (weight_bytes(layer) < level2_cache_bytes()) return false;
  const int64_t tiles = batch * ((out.h + 1) / 2) * ((out.w + 1) / 2);
  return prefers_tiles(kernels, winograd_product(layer, tiles), 1);
}

void run_winograd_batches(const Microkernels& kernels, const Conv& conv) {
  const ConvGeometry& g = conv.geometry;
  const int64_t at_once = winograd_images_at_once(g.out, g.in_channels + g.out_channels);
  for (int64_t n = 0; n < g.batch; n += at_once) {
    Batch(kernels, conv, {n, std::min(n + at_once, g.batch)}).run();
  }
}

}  // namespace fastres::cpu

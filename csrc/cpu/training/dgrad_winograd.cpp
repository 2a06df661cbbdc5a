// The gradient of a dense 3x3's input by Winograd, many images at a time.

#include <algorithm>

#include "../convolution/winograd_batch.h"
#include "../runtime/scratch.h"
#include "dgrad.h"

namespace fastres::cpu {
namespace {

class WinogradBatch {
 public:
  WinogradBatch(const Kernels& kernels, const TrainingConv& conv, const OutputGradient& gradient,
                const InputBackward& input)
      : kernels_(kernels),
        conv_(conv),
        gradient_(gradient),
        grad_x_(input.grad_x),
        dgrad_(kernels, conv, input) {}

  // Some images; appends the sums of their slices.
  void run(Range images, std::vector<InputGradientSums>& parts) const {
    const ConvGeometry& g = conv_.geometry;
    const TileBuffer input(images.size(), g.in, g.out_channels),
        products(images.size(), g.in, g.in_channels);
    const Slices slices =
        tile_slices(images.size(), g.in, dgrad_.gradient_columns().size() * g.out_channels);
    parallel_parts(slices.count(), [&](int64_t i) { load(images.begin, slices[i], input); });
    multiply_tiles(kernels_.base, dgrad_.winograd_layer(), input.all(), products.all());
    const size_t before = parts.size();
    parts.resize(before + static_cast<size_t>(slices.count()), InputGradientSums(g.in_channels));
    parallel_parts(slices.count(), [&](int64_t i) {
      finish(images.begin, slices[i], products, parts[before + static_cast<size_t>(i)]);
    });
  }

 private:
  void load(int64_t first, Slices::Slice slice, const TileBuffer& input) const {
    const Range rows = dgrad_.gradient_rows(slice), columns = dgrad_.gradient_columns();
    const Range channels{0, conv_.geometry.out_channels};
    const int64_t floats = band_floats(rows.size() * columns.size(), channels.size());
    const Band band = gradient_.load(kernels_, {first + slice.image, rows, columns, channels},
                                     thread_scratch().inner2.floats(floats));
    kernels_.base.winograd_input(input.of(slice), band.data, band.row_stride, band.pixel_stride,
                                 rows.size(), columns.size());
  }

  void finish(int64_t first, Slices::Slice slice, const TileBuffer& products,
              InputGradientSums& sums) const {
    const WinogradTiles tiles = products.of(slice);
    const Range channels{0, conv_.geometry.in_channels};
    slice.image += first;
    const OutputRows target(kernels_.base, grad_x_, slice.image, slice.row, slice.rows);
    ConvBand band;
    band.output = target.band();
    band.rows = slice.rows;
    band.pixels = conv_.geometry.in.w;
    winograd_outputs(kernels_.base, dgrad_.winograd_layer(), tiles, band, channels);
    dgrad_.finish(slice, band.output, sums, {});
    target.store(channels);
  }

  const Kernels& kernels_;
  const TrainingConv& conv_;
  const OutputGradient& gradient_;
  const Image& grad_x_;
  const InputGradient dgrad_;
};

}  // namespace

InputGradientSums run_winograd_dgrad(const Kernels& kernels, const TrainingConv& conv,
                                     const OutputGradient& gradient, const InputBackward& input) {
  const ConvGeometry& g = conv.geometry;
  const WinogradBatch batch(kernels, conv, gradient, input);
  std::vector<InputGradientSums> parts;
  for_each_winograd_batch(g.batch, g.in, g.in_channels + g.out_channels,
                          [&](Range images) { batch.run(images, parts); });
  for (size_t i = 1; i < parts.size(); ++i) parts[0].add(parts[i]);
  return std::move(parts[0]);
}

}  // namespace fastres::cpu

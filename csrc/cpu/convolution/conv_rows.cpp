#include "conv_rows.h"

#include <span>
#include <vector>

#include "../runtime/scratch.h"
#include "narrow_tiles.h"
#include "panels.h"
#include "split_rows.h"
#include "tile_panels.h"
#include "winograd.h"

namespace fastres::cpu {
namespace {

// Whether rows, every step.h-th, follow each other at the distance of every step.w-th pixel. Where
// a row has one pixel its distance is made so.
template <class T>
bool continues(PixelRows<T>& band, int64_t pixels, Extent step) {
  if (band.data == nullptr) return true;
  if (pixels == 1) band.pixel_stride = band.row_stride * step.h / step.w;
  return band.row_stride * step.h == pixels * band.pixel_stride * step.w;
}

// Rows that follow each other at the pixels' own distance are one long row, which leaves one
// narrower tile at its end instead of one per row.
void join_rows(const ConvLayer& layer, ConvBand& band) {
  const auto joins = [&](auto& rows, Extent step) { return continues(rows, band.pixels, step); };
  const bool all = joins(band.input, layer.stride) && joins(band.input16, layer.stride) &&
                   joins(band.residual, {1, 1}) && joins(band.residual16, {1, 1}) &&
                   joins(band.output, {1, 1}) && joins(band.output16, {1, 1});
  if (!all) return;
  band.pixels *= band.rows;
  band.rows = 1;
}

// On register tiles, a panel for all bands before the next.
void register_panels(const Microkernels& kernels, const ConvLayer& layer,
                     std::span<const ConvTile> tiles, Range panels) {
  for (int64_t i = 0; i < panels.size(); ++i) {
    const int64_t panel = nth_panel(layer, panels, i);
    const float* weights = ready_weights(kernels, layer, panel, i, all_channels(layer));
    FetchList next;
    for (int64_t b = 0; b < std::ssize(tiles); ++b) {
      ConvTile t = panel_tile(kernels, layer, tiles[static_cast<size_t>(b)], panel, weights);
      if (b == 0) {
        set_next(kernels, layer, panels, i, 1, {{0, t.channels}, true}, t);
        next = t.upcoming;
      }
      t.upcoming = part_of(next, std::ssize(tiles), b);
      kernels.igemm(t);
    }
  }
}

bool takes_arranged_weights(const PackedHeader& h) {
  return h.layout == PackedLayout::lanes && h.group_in_channels >= 4;
}

void lanes_panels(const Microkernels& kernels, const ConvLayer& layer, ConvTile t, Range panels) {
  const PackedHeader& h = layer.header;
  const Range channels = panel_channels(kernels, layer, panels);
  const bool grouped = takes_arranged_weights(h);
  t.input += channels.begin;
  t.weights = (grouped ? layer.arranged : layer.weights) + panels.begin * t.weight_block_stride;
  select_outputs(t, channels);
  t.upcoming = layer.upcoming.part(1, 0);
  (grouped ? kernels.grouped : kernels.lanes)(t, h.group_in_channels);
}

// The layer with the weights of `panels` arranged.
ConvLayer arrange(const Microkernels& kernels, ConvLayer layer, Range panels) {
  const PackedHeader& h = layer.header;
  float* target = thread_scratch().arranged.floats(h.payload_floats());
  const int64_t first = panels.begin * h.block_stride();
  kernels.arrange_grouped(layer.weights + first, panels.size(), h.taps(), h.group_in_channels,
                          target + first);
  layer.arranged = target;
  return layer;
}

}  // namespace

ConvLayer arranged(const Microkernels& kernels, ConvLayer layer, Range panels) {
  const PackedHeader& h = layer.header;
  if (!takes_arranged_weights(h) || layer.arranged != nullptr) return layer;
  return multiplies_narrow_groups(kernels, h) ? layer : arrange(kernels, layer, panels);
}

void conv_rows(const Microkernels& kernels, const ConvLayer& layer, ConvBand band, Range panels) {
  if (layer.header.layout == PackedLayout::winograd) {
    return winograd_rows(kernels, layer, {}, band, panels);
  }
  if (layer.header.taps() == 1) join_rows(layer, band);
  if (multiplies_narrow_groups(kernels, layer.header)) {
    return narrow_tile_panels(kernels, layer, band, panels);
  }
  if (layer.header.layout == PackedLayout::lanes) {
    return lanes_panels(kernels, arranged(kernels, layer, panels), tile_of(layer, band), panels);
  }
  if (prefers_tiles(kernels, layer, band.pixels)) return tile_panels(kernels, layer, band, panels);
  const ConvTile tile = tile_of(layer, band);
  register_panels(kernels, layer, {&tile, 1}, panels);
}

void conv_bands(const Microkernels& kernels, const ConvLayer& layer,
                std::span<const ConvBand> bands, Range panels) {
  std::vector<ConvTile> tiles;
  for (const ConvBand& band : bands) tiles.push_back(tile_of(layer, band));
  register_panels(kernels, layer, tiles, panels);
}

}  // namespace fastres::cpu

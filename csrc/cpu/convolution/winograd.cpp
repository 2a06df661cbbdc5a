#include "winograd.h"

#include <algorithm>
#include <span>
#include <vector>

#include "../runtime/cache.h"
#include "../runtime/scratch.h"
#include "conv_rows.h"
#include "pack_on_use.h"
#include "panels.h"
#include "split_rows.h"

namespace fastres::cpu {
namespace {

constexpr int64_t kHalo = 2;  // input rows and columns beyond the outputs
// Positions a power of two apart would fall into the same cache sets.
constexpr int64_t kPositionPadding = 16;

// Tile rows whose transformed inputs and products stay in the level-2 cache together.
int64_t tile_rows_in_cache(int64_t tile_cols, int64_t channels) {
  const int64_t bytes =
      tile_cols * kWinogradPositions * channels * static_cast<int64_t>(sizeof(float));
  return std::max<int64_t>(1, level2_cache_bytes() * 3 / 4 / bytes);
}

// One panel's transformed weights: sixteen matrices, [input channels][output channels] in blocks.
struct PanelWeights {
  const float* data;
  int64_t position_stride;
  // The next panel's, not transformed: fetched meanwhile. Null where these come from memory.
  FloatSpan upcoming = {};
};

PanelWeights packed_panel(const Microkernels& kernels, const ConvLayer& layer, Range panels,
                          int64_t i) {
  const PackedHeader& h = layer.header;
  const int64_t panel = nth_panel(layer, panels, i);
  const int64_t channel = panel * kernels.panel_channels;
  PanelWeights weights{
      layer.weights + channel / kChannelBlock * h.block_stride() + channel % kChannelBlock,
      h.blocks() * h.block_stride()};
  if (layer.packing == nullptr) return weights;
  layer.packing->prepare(panel_blocks(kernels, layer, panel));
  if (const int64_t next = nth_panel(layer, panels, i + 1); next >= 0) {
    weights.upcoming = layer.packing->unpacked(panel_blocks(kernels, layer, next));
  }
  return weights;
}

// Transforms a panel's weights into the level-2 cache, right before they are used.
PanelWeights live_panel(const Microkernels& kernels, const ConvLayer& layer,
                        const PlainWeight& plain, int64_t panel) {
  const PackedHeader& h = layer.header;
  const Range blocks = panel_blocks(kernels, layer, panel);
  const int64_t stride = blocks.size() * h.block_stride();
  float* packed = thread_scratch().weights.floats(kWinogradPositions * stride);
  pack_winograd_blocks(kernels, h, plain, blocks, packed, stride);
  packed += panel * kernels.panel_channels % kChannelBlock;  // narrow panels share a block
  if (blocks.end == h.blocks()) return {packed, stride, {packed, 0}};
  const Range next{blocks.end, std::min(blocks.end + blocks.size(), h.blocks())};
  return {packed, stride, plain_values(h, plain, next)};
}

// A 1x1 convolution over tiles, without shift or activation.
ConvTile product_tile(const WinogradTiles& input, const WinogradTiles& products) {
  static constexpr float kZeros[64] = {};
  ConvTile t{};
  t.input_pixel_stride = input.tile_stride;
  t.tap_rows = t.tap_cols = 1;
  t.channels = input.channels;
  t.weight_block_stride = input.channels * kChannelBlock;
  t.shift = kZeros;
  t.output_pixel_stride = products.tile_stride;
  t.rows = 1;
  t.pixels = input.tile_rows * input.tile_cols;
  t.out_channels = products.channels;
  return t;
}

ConvTile output_tile(const ConvLayer& layer, const ConvBand& band, Range channels) {
  ConvTile t{};
  set_outputs(t, layer, band);
  select_outputs(t, channels);
  return t;
}

class Chunk {
 public:
  Chunk(const Microkernels& kernels, const ConvLayer& layer, int64_t pixels)
      : tile_cols_((pixels + 1) / 2),
        in_channels_(layer.header.group_in_channels),
        panel_channels_(kernels.panel_channels) {}

  int64_t rows_in_cache() const {
    return 2 * tile_rows_in_cache(tile_cols_, in_channels_ + panel_channels_);
  }

  // Transforms the inputs once, then takes each panel of output channels to its end.
  void run(const Microkernels& kernels, const ConvLayer& layer, const PlainWeight& plain,
           std::span<const ConvBand> bands, Range panels) const {
    int64_t tile_rows = 0;
    for (const ConvBand& band : bands) tile_rows += tile_rows_of(band);
    const WinogradTiles input = buffer(thread_scratch().winograd_input, tile_rows, in_channels_);
    for_each_part(input, bands, [&](const WinogradTiles& part, const ConvBand& band) {
      kernels.winograd_input(part, band.input.data, band.input.row_stride, band.input.pixel_stride,
                             band.rows + kHalo, band.pixels + kHalo);
    });
    for (int64_t i = 0; i < panels.size(); ++i) {
      const int64_t panel = nth_panel(layer, panels, i);
      const PanelWeights weights = plain.data != nullptr ? live_panel(kernels, layer, plain, panel)
                                                         : packed_panel(kernels, layer, panels, i);
      const Range channels = panel_channels(kernels, layer, {panel, panel + 1});
      const WinogradTiles products =
          buffer(thread_scratch().winograd_output, tile_rows, channels.size());
      multiply(kernels, weights, input, products);
      for_each_part(products, bands, [&](const WinogradTiles& part, const ConvBand& band) {
        winograd_outputs(kernels, layer, part, band, channels);
      });
    }
  }

 private:
  static int64_t tile_rows_of(const ConvBand& band) { return (band.rows + 1) / 2; }

  // Calls use(tiles, band) with each band's share of the tiles.
  template <class Use>
  static void for_each_part(WinogradTiles tiles, std::span<const ConvBand> bands, const Use& use) {
    for (const ConvBand& band : bands) {
      tiles.tile_rows = tile_rows_of(band);
      use(tiles, band);
      tiles.transformed = tiles.at(0, tiles.tile_rows * tiles.tile_cols);
    }
  }

  WinogradTiles buffer(Scratch& scratch, int64_t tile_rows, int64_t channels) const {
    const int64_t stride = tile_rows * tile_cols_ * channels + kPositionPadding;
    float* transformed = scratch.floats(kWinogradPositions * stride);
    return {tile_rows, tile_cols_, channels, transformed, stride, channels};
  }

  // For each position tiles x input channels times input x output channels.
  void multiply(const Microkernels& kernels, const PanelWeights& weights,
                const WinogradTiles& input, const WinogradTiles& products) const {
    ConvTile t = product_tile(input, products);
    for (int64_t position = 0; position < kWinogradPositions; ++position) {
      t.input = input.at(position, 0);
      t.weights = weights.data + position * weights.position_stride;
      t.output = products.at(position, 0);
      if (weights.upcoming.data != nullptr) {
        const Range part = even_range(weights.upcoming.count, kWinogradPositions, position);
        t.upcoming.spans[0] = {weights.upcoming.data + part.begin, part.size()};
      } else if (position + 1 < kWinogradPositions) {
        t.upcoming.spans[0] = {t.weights + weights.position_stride, panel_channels_ * in_channels_};
      }
      kernels.igemm(t);
    }
  }

  int64_t tile_cols_;
  int64_t in_channels_;
  int64_t panel_channels_;
};

}  // namespace

ConvLayer winograd_product(ConvLayer layer) {
  layer.header.layout = PackedLayout::igemm;
  layer.header.kernel_h = layer.header.kernel_w = 1;
  layer.act = Activation::none;
  return layer;
}

void winograd_products(const Microkernels& kernels, const ConvLayer& layer,
                       const WinogradTiles& input, Range positions, Range panels,
                       const WinogradTiles& products) {
  ConvLayer product = winograd_product(layer);
  const std::vector<float> no_shift(static_cast<size_t>(product.header.out_channels), 0.0F);
  product.shift = no_shift.data();
  const int64_t tiles = input.tile_rows * input.tile_cols;
  const int64_t bytes = input.channels * int64_t{sizeof(float)};
  const int64_t at_once = prefers_tiles(kernels, product, 1)
                              ? split_rows_in_cache(kernels, product, 1)
                              : std::max<int64_t>(level2_cache_bytes() / 2 / bytes, 1);
  const int64_t parts = ceil_div(tiles, at_once);
  for (int64_t position = positions.begin; position < positions.end; ++position) {
    // Threads begin with different panels, which inference may pack on use.
    product.first_panel = panels.size() * position / kWinogradPositions;
    product.weights =
        layer.weights + position * layer.header.blocks() * layer.header.block_stride();
    for (int64_t part = 0; part < parts; ++part) {
      const Range mine = even_range(tiles, parts, part);
      ConvBand band;
      band.rows = 1;
      band.pixels = mine.size();
      band.input.data = input.at(position, mine.begin);
      band.input.pixel_stride = input.tile_stride;
      band.output.data = products.at(position, mine.begin);
      band.output.pixel_stride = products.tile_stride;
      conv_rows(kernels, product, band, panels);
    }
  }
}

void winograd_outputs(const Microkernels& kernels, const ConvLayer& layer,
                      const WinogradTiles& products, const ConvBand& band, Range channels) {
  kernels.winograd_output(products, output_tile(layer, band, channels));
}

bool prefers_direct(const Microkernels& kernels, int64_t channels) {
  constexpr int64_t kNarrow = 160;
  return multiplies_bfloat16(kernels) || (kernels.split != nullptr && channels <= kNarrow);
}

int64_t winograd_rows_in_cache(const Microkernels& kernels, const ConvLayer& layer,
                               int64_t pixels) {
  return Chunk(kernels, layer, pixels).rows_in_cache();
}

void winograd_bands(const Microkernels& kernels, const ConvLayer& layer, const PlainWeight& plain,
                    std::span<const ConvBand> bands, Range panels) {
  Chunk(kernels, layer, bands.front().pixels).run(kernels, layer, plain, bands, panels);
}

void winograd_rows(const Microkernels& kernels, const ConvLayer& layer, const PlainWeight& plain,
                   ConvBand band, Range panels) {
  const int64_t step = winograd_rows_in_cache(kernels, layer, band.pixels);
  for (int64_t left = band.rows; left > 0; left -= step) {
    band.rows = std::min(step, left);
    winograd_bands(kernels, layer, plain, {&band, 1}, panels);
    band.input.data += step * band.input.row_stride;
    if (band.residual.data != nullptr) band.residual.data += step * band.residual.row_stride;
    band.output.data += step * band.output.row_stride;
  }
}

}  // namespace fastres::cpu

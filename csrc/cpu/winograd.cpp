#include "winograd.h"

#include <algorithm>

#include "cache.h"
#include "scratch.h"

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

// The matrix product of one position: tiles x input channels times input x output channels.
void multiply_position(const Microkernels& kernels, const ConvLayer& layer, ConvTile t,
                       int64_t position, Range panels) {
  const PackedHeader& h = layer.header;
  const float* weights = layer.weights + position * h.blocks() * h.block_stride();
  float* products = t.output;
  const int64_t first = panels.begin * kernels.panel_channels;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const int64_t channel = panel * kernels.panel_channels;
    t.weights = weights + channel / kChannelBlock * h.block_stride() + channel % kChannelBlock;
    t.output = products + channel - first;
    t.out_channels = std::min<int64_t>(kernels.panel_channels, h.out_channels - channel);
    t.next_weight_floats = kernels.panel_channels / kChannelBlock * h.block_stride();
    t.next_weights = panel + 1 < panels.end ? t.weights + t.next_weight_floats : nullptr;
    kernels.igemm(t);
  }
}

class Chunk {
 public:
  Chunk(const ConvLayer& layer, const ConvBand& band, int64_t out_channels)
      : tile_cols_((band.pixels + 1) / 2),
        in_channels_(layer.header.group_in_channels),
        out_channels_(out_channels) {}

  int64_t rows_in_cache() const {
    return 2 * tile_rows_in_cache(tile_cols_, in_channels_ + out_channels_);
  }

  void run(const Microkernels& kernels, const ConvLayer& layer, const ConvBand& band,
           Range panels) const {
    const int64_t tile_rows = (band.rows + 1) / 2;
    const int64_t tiles = tile_rows * tile_cols_;
    const WinogradTiles input = buffer(thread_scratch().winograd_input, tile_rows, in_channels_);
    const WinogradTiles products =
        buffer(thread_scratch().winograd_output, tile_rows, out_channels_);
    kernels.winograd_input(input, band.input.data, band.input.row_stride, band.input.pixel_stride,
                           band.rows + kHalo, band.pixels + kHalo);
    ConvTile t = product_tile(tiles);
    for (int64_t position = 0; position < kWinogradPositions; ++position) {
      t.input = input.transformed + position * input.position_stride;
      t.output = products.transformed + position * products.position_stride;
      multiply_position(kernels, layer, t, position, panels);
    }
    kernels.winograd_output(products, output_tile(kernels, layer, band, panels));
  }

 private:
  WinogradTiles buffer(Scratch& scratch, int64_t tile_rows, int64_t channels) const {
    const int64_t stride = tile_rows * tile_cols_ * channels + kPositionPadding;
    return {tile_rows, tile_cols_, channels, scratch.floats(kWinogradPositions * stride), stride};
  }

  // A 1x1 convolution over the tiles, without shift or activation.
  ConvTile product_tile(int64_t tiles) const {
    static constexpr float kZeros[64] = {};
    ConvTile t{};
    t.input_pixel_stride = in_channels_;
    t.tap_rows = t.tap_cols = 1;
    t.channels = in_channels_;
    t.weight_block_stride = in_channels_ * kChannelBlock;
    t.shift = kZeros;
    t.output_pixel_stride = out_channels_;
    t.rows = 1;
    t.pixels = tiles;
    return t;
  }

  static ConvTile output_tile(const Microkernels& kernels, const ConvLayer& layer,
                              const ConvBand& band, Range panels) {
    const int64_t first = panels.begin * kernels.panel_channels;
    ConvTile t{};
    t.shift = layer.shift + first;
    t.residual = band.residual.data != nullptr ? band.residual.data + first : nullptr;
    t.residual_row_stride = band.residual.row_stride;
    t.residual_pixel_stride = band.residual.pixel_stride;
    t.output = band.output.data + first;
    t.output_row_stride = band.output.row_stride;
    t.output_pixel_stride = band.output.pixel_stride;
    t.rows = band.rows;
    t.pixels = band.pixels;
    t.act = layer.act;
    t.act_slope = layer.act_slope;
    return t;
  }

  int64_t tile_cols_;
  int64_t in_channels_;
  int64_t out_channels_;
};

}  // namespace

void winograd_rows(const Microkernels& kernels, const ConvLayer& layer, ConvBand band,
                   Range panels) {
  const Chunk chunk(layer, band, panel_channels(kernels, layer, panels).size());
  const int64_t step = chunk.rows_in_cache();
  for (int64_t left = band.rows; left > 0; left -= step) {
    band.rows = std::min(step, left);
    chunk.run(kernels, layer, band, panels);
    band.input.data += step * band.input.row_stride;
    if (band.residual.data != nullptr) band.residual.data += step * band.residual.row_stride;
    band.output.data += step * band.output.row_stride;
  }
}

}  // namespace fastres::cpu

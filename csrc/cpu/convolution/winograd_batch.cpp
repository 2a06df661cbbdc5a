#include "winograd_batch.h"

#include <algorithm>

#include "../runtime/cache.h"
#include "panels.h"

namespace fastres::cpu {
namespace {

// Buffers of more are not faster: they lie in the shared cache or beyond it either way.
constexpr int64_t kBufferBytes = int64_t{16} << 20;
// Positions a power of two apart would fall into the same cache sets.
constexpr int64_t kPositionPadding = kChannelBlock;

int64_t half(int64_t size) { return (size + 1) / 2; }

// Room for the vectors of a tile's last channels, at a multiple of the cache line.
int64_t tile_stride(int64_t channels) {
  return band_pixel_stride((channels + kChannelBlock - 1) / kChannelBlock * kChannelBlock);
}

WinogradTiles tiles_of(int64_t images, Extent out, int64_t channels) {
  WinogradTiles tiles{};
  tiles.tile_rows = images * half(out.h);
  tiles.tile_cols = half(out.w);
  tiles.channels = channels;
  tiles.tile_stride = tile_stride(channels);
  tiles.position_stride = tiles.tile_rows * tiles.tile_cols * tiles.tile_stride + kPositionPadding;
  return tiles;
}

}  // namespace

bool trains_in_winograd_batches(const WeightView& weight) {
  const int64_t bytes =
      kWinogradPositions * weight.out_channels * weight.group_in_channels * int64_t{sizeof(float)};
  return bytes >= level2_cache_bytes() / 2;
}

int64_t winograd_rows_at_once(Extent out, int64_t channels) {
  const int64_t bytes =
      kWinogradPositions * half(out.w) * tile_stride(channels) * int64_t{sizeof(float)};
  return 2 * std::max<int64_t>(1, kBufferBytes / bytes);
}

Slices tile_slices(int64_t images, Extent out, int64_t row_floats, int64_t fewest) {
  const int64_t rows = level2_cache_bytes() / 4 / (row_floats * int64_t{sizeof(float)});
  return {images, out.h, rows, 2, fewest};
}

TileBuffer::TileBuffer(int64_t images, Extent out, int64_t channels)
    : image_rows_(half(out.h)),
      tiles_(tiles_of(images, out, channels)),
      memory_(kWinogradPositions * tiles_.position_stride) {
  tiles_.transformed = memory_.data();
}

WinogradTiles TileBuffer::of(const Slices::Slice& slice) const {
  WinogradTiles tiles = tiles_;
  const int64_t row = slice.image * image_rows_ + slice.row / 2;
  tiles.transformed = tiles.at(0, row * tiles.tile_cols);
  tiles.tile_rows = half(slice.rows);
  return tiles;
}

void multiply_tiles(const Microkernels& kernels, const ConvLayer& layer, const WinogradTiles& input,
                    const WinogradTiles& products) {
  const int64_t panels = panel_count(kernels, layer);
  const int64_t shares = std::min(panels, 1 + thread_count() / 4);
  parallel_parts(kWinogradPositions * shares, [&](int64_t i) {
    const int64_t position = i / shares;
    winograd_products(kernels, layer, input, {position, position + 1},
                      even_range(panels, shares, i % shares), products);
  });
}

}  // namespace fastres::cpu

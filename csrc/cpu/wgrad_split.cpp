#include "wgrad_split.h"

#include <algorithm>

#include "../packed_weight.h"
#include "cache.h"
#include "scratch.h"
#include "split.h"

namespace fastres::cpu {
namespace {

// Pixels that are summed at a time: the fewer, the more often sums are loaded and stored.
constexpr int64_t kFewestPixels = 4 * kSplitChannels;
constexpr int64_t kMostPixels = 32 * kSplitChannels;

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Calls part(tile) for parts of about so many pixels, of one image each.
template <class Part>
void for_each_part(WgradTile tile, int64_t pixels_at_once, const Part& part) {
  const bool by_rows = tile.rows > 1;
  const int64_t size =
      by_rows ? std::max<int64_t>(1, pixels_at_once / tile.pixels) : pixels_at_once;
  const int64_t count = by_rows ? tile.rows : tile.pixels;
  for (int64_t n = 0; n < tile.images; ++n) {
    for (int64_t first = 0; first < count; first += size) {
      WgradTile some = tile;
      (by_rows ? some.rows : some.pixels) = std::min(size, count - first);
      some.images = 1;
      some.input += n * tile.input_image_stride +
                    first * (by_rows ? tile.input_row_stride : tile.input_pixel_stride);
      some.grad += n * tile.grad_image_stride +
                   first * (by_rows ? tile.grad_row_stride : tile.grad_pixel_stride);
      part(some);
    }
  }
}

// `tile` of few enough pixels. False, and nothing is added, where a value has no bfloat16 parts.
bool add_split(const SplitKernels& kernels, const WgradTile& tile, int64_t out_channels) {
  static constexpr float kZeros[2 * kChannelBlock] = {};
  static constexpr ptrdiff_t kNoTap = 0;
  const int64_t chunks = split_chunks(tile.rows * tile.pixels);
  SplitPixels input{};
  input.input = tile.input;
  input.row_stride = tile.input_row_stride;
  input.pixel_stride = tile.input_pixel_stride;
  input.rows = tile.rows;
  input.pixels = tile.pixels;
  input.channels = tile.channels;
  input.plane_stride = (round_up(input.channels, kSplitPositions) | 1) * kSplitChannels;
  input.planes = thread_scratch().planes.bfloat16s(chunks * kSplitParts * input.plane_stride);
  SplitPixels grad = input;
  grad.input = tile.grad;
  grad.row_stride = tile.grad_row_stride;
  grad.pixel_stride = tile.grad_pixel_stride;
  grad.channels = out_channels;
  grad.plane_stride = tile.blocks * kSplitBlock;
  grad.planes = thread_scratch().split_weights.bfloat16s(chunks * kSplitParts * grad.plane_stride);
  if (!kernels.split_transposed(input) || !kernels.split_columns(grad)) return false;

  SplitTile t{};
  t.input = input.planes;
  t.plane_stride = input.plane_stride;
  t.taps = &kNoTap;
  t.tap_count = 1;
  t.chunks = chunks;
  t.row_positions = input.channels;
  t.part_stride = grad.plane_stride;
  t.chunk_stride = kSplitParts * grad.plane_stride;
  t.output_block_stride = tile.sums_block_stride;
  t.panels = 1;
  ConvTile output{};
  output.shift = kZeros;
  output.rows = 1;
  output.pixels = input.channels;
  output.output_pixel_stride = output.residual_pixel_stride = kChannelBlock;
  for (int64_t block = 0; block < tile.blocks; block += t.blocks) {
    t.blocks = std::min<int64_t>(2, tile.blocks - block);
    t.weights = grad.planes + block * kSplitBlock;
    output.out_channels = t.blocks * kChannelBlock;
    output.output = tile.sums + block * tile.sums_block_stride;
    output.residual = output.output;
    kernels.multiply(t, output);
  }
  return true;
}

}  // namespace

// In cycles for 32 pixels, as in prefers_tiles(); transposing the input takes the most of them.
bool prefers_split_sums(const Microkernels& kernels, int64_t channels, int64_t out_channels) {
  if (kernels.split == nullptr) return false;
  const int64_t products = round_up(channels, kSplitPositions) * round_up(out_channels, 32);
  const int64_t tiles = 60 * channels + 25 * out_channels + products * 15 / 32;
  return tiles < channels * out_channels * 32 / 27;
}

void add_split_sums(const Microkernels& kernels, const WgradTile& tile, int64_t out_channels,
                    const std::function<void(const WgradTile&)>& otherwise) {
  const int64_t channels = round_up(tile.channels, kSplitPositions);
  // Beside them are as many of the gradient's values, and the sums.
  const int64_t in_cache = level2_cache_bytes() * 3 / 20 / (2 * kSplitParts * channels);
  const int64_t pixels =
      std::clamp(in_cache / kSplitChannels * kSplitChannels, kFewestPixels, kMostPixels);
  for_each_part(tile, pixels, [&](const WgradTile& part) {
    if (!add_split(*kernels.split, part, out_channels)) otherwise(part);
  });
}

}  // namespace fastres::cpu

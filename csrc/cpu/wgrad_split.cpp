// The gradient of a 1x1 convolution's weight on matrix tiles; see split.h.

#include <algorithm>

#include "cache.h"
#include "scratch.h"
#include "split.h"
#include "wgrad.h"

namespace fastres::cpu {
namespace {

// Pixels that are summed at a time: the fewer, the more often sums are loaded and stored.
constexpr int64_t kFewestPixels = 4 * kSplitChannels;
constexpr int64_t kMostPixels = 32 * kSplitChannels;

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

Bfloat16* bfloat16s(Scratch& scratch, int64_t count) {
  return reinterpret_cast<Bfloat16*>(scratch.floats((count + 1) / 2));
}

// Images without borders between them are one image, and such rows one row.
void join(WgradTile& t) {
  if (t.input_image_stride == t.rows * t.input_row_stride &&
      t.grad_image_stride == t.rows * t.grad_row_stride) {
    t.rows *= t.images;
    t.images = 1;
  }
  if (t.input_row_stride == t.pixels * t.input_pixel_stride &&
      t.grad_row_stride == t.pixels * t.grad_pixel_stride) {
    t.pixels *= t.rows;
    t.rows = 1;
  }
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

}  // namespace

// In cycles for 32 pixels, as in prefers_tiles(); transposing the input takes the most of them.
bool WeightSums::prefers_tiles(const Piece& piece) const {
  if (kernels_.base.split == nullptr || lanes_ || header_.taps() > 1 || header_.groups > 1) {
    return false;
  }
  const int64_t in = piece.channels.size(), out = piece.units.size() * kChannelBlock;
  const int64_t tiles = 60 * in + 25 * out + round_up(in, 32) * round_up(out, 32) * 15 / 32;
  return tiles < in * out * 32 / 27;
}

void WeightSums::add_on_tiles(WgradTile tile, const Piece& piece, float* sums) const {
  join(tile);
  const int64_t channels = round_up(piece.channels.size(), kSplitPositions);
  // Beside them are as many of the gradient's values, and the sums.
  const int64_t in_cache = level2_cache_bytes() * 3 / 20 / (2 * kSplitParts * channels);
  const int64_t pixels =
      std::clamp(in_cache / kSplitChannels * kSplitChannels, kFewestPixels, kMostPixels);
  for_each_part(tile, pixels, [&](const WgradTile& part) {
    if (!add_split(part, piece, sums)) add_block(part, piece, sums);
  });
}

bool WeightSums::add_split(const WgradTile& tile, const Piece& piece, float* sums) const {
  static constexpr float kZeros[2 * kChannelBlock] = {};
  static constexpr ptrdiff_t kNoTap = 0;
  const SplitKernels& kernels = *kernels_.base.split;
  const int64_t chunks = split_chunks(tile.rows * tile.pixels);
  SplitPixels input{};
  input.input = tile.input;
  input.row_stride = tile.input_row_stride;
  input.pixel_stride = tile.input_pixel_stride;
  input.rows = tile.rows;
  input.pixels = tile.pixels;
  input.channels = piece.channels.size();
  input.plane_stride = (round_up(input.channels, kSplitPositions) | 1) * kSplitChannels;
  input.planes = bfloat16s(thread_scratch().planes, chunks * kSplitParts * input.plane_stride);
  SplitPixels grad = input;
  grad.input = tile.grad;
  grad.row_stride = tile.grad_row_stride;
  grad.pixel_stride = tile.grad_pixel_stride;
  grad.channels = output_channels(piece).size();
  grad.plane_stride = piece.units.size() * kSplitBlock;
  grad.planes = bfloat16s(thread_scratch().split_weights, chunks * kSplitParts * grad.plane_stride);
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
  t.output_block_stride = unit_floats();
  ConvTile output{};
  output.shift = kZeros;
  output.rows = 1;
  output.pixels = input.channels;
  output.output_pixel_stride = output.residual_pixel_stride = kChannelBlock;
  for (int64_t unit = 0; unit < piece.units.size(); unit += t.blocks) {
    t.blocks = std::min<int64_t>(2, piece.units.size() - unit);
    t.weights = grad.planes + unit * kSplitBlock;
    output.out_channels = t.blocks * kChannelBlock;
    output.output =
        sums + (piece.units.begin + unit) * unit_floats() + piece.channels.begin * kChannelBlock;
    output.residual = output.output;
    kernels.multiply(t, output);
  }
  return true;
}

}  // namespace fastres::cpu

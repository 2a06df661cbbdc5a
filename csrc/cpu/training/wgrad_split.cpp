#include "wgrad_split.h"

#include <algorithm>
#include <utility>

#include "../../packed_weight.h"
#include "../runtime/cache.h"
#include "../runtime/scratch.h"
#include "../split.h"

namespace fastres::cpu {
namespace {

// Pixels that are summed at a time: the fewer, the more often sums are loaded and stored.
constexpr int64_t kFewestPixels = 4 * kSplitChannels;
constexpr int64_t kMostPixels = 32 * kSplitChannels;

int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

// What a tile's pixels are shared out along: images, rows or pixels.
struct PixelAxis {
  int64_t& size;
  int64_t pixels;  // of one step
  ptrdiff_t input_stride, grad_stride;
};

PixelAxis pixel_axis(WgradTile& tile) {
  if (tile.images > 1) {
    return {tile.images, tile.rows * tile.pixels, tile.input_image_stride, tile.grad_image_stride};
  }
  if (tile.rows > 1) return {tile.rows, tile.pixels, tile.input_row_stride, tile.grad_row_stride};
  return {tile.pixels, 1, tile.input_pixel_stride, tile.grad_pixel_stride};
}

// Calls part(tile) with parts of about so many pixels, or with a whole row.
template <class Part>
void for_each_part(WgradTile tile, int64_t pixels_at_once, const Part& part) {
  const PixelAxis axis = pixel_axis(tile);
  const int64_t count = axis.size;
  const int64_t parts = ceil_div(count, std::max<int64_t>(1, pixels_at_once / axis.pixels));
  int64_t at_once = ceil_div(count, parts);
  if (axis.pixels == 1) at_once = round_up(at_once, kSplitChannels);
  for (int64_t first = 0; first < count; first += at_once) {
    axis.size = std::min(at_once, count - first);
    if (axis.size == 1 && axis.pixels > pixels_at_once && tile.rows > 1) {
      for_each_part(tile, pixels_at_once, part);
    } else {
      part(tile);
    }
    tile.input += axis.size * axis.input_stride;
    tile.grad += axis.size * axis.grad_stride;
  }
}

// Some pixels' gradients of the output, split, and the input of one tap after the other.
class SplitSums {
 public:
  SplitSums(const SplitKernels& kernels, const WgradTile& tile, int64_t out_channels)
      : kernels_(kernels),
        tile_(tile),
        chunks_(split_chunks(tile.images * tile.rows * tile.pixels)),
        input_stride_((round_up(tile.channels, kSplitPositions) | 1) * kSplitChannels),
        grad_stride_(tile.blocks * kSplitBlock),
        input_(thread_scratch().planes.bfloat16s(chunks_ * kernels.parts * input_stride_)),
        grad_(thread_scratch().split_weights.bfloat16s(chunks_ * kernels.parts * grad_stride_)) {
    SplitPixels s{};
    s.input = tile.grad;
    s.row_stride = tile.grad_row_stride;
    s.pixel_stride = tile.grad_pixel_stride;
    s.image_stride = tile.grad_image_stride;
    s.images = tile.images;
    s.rows = tile.rows;
    s.pixels = tile.pixels;
    s.channels = out_channels;
    s.planes = grad_;
    s.plane_stride = grad_stride_;
    finite_ = kernels.split_columns(s);
  }

  // `tap` is the tile's part of one; meanwhile fetches `upcoming`. False, and nothing is added,
  // where a value has no bfloat16 parts.
  bool add(const WgradTile& tap, const Upcoming& upcoming) const {
    if (!finite_) return false;
    SplitPixels s{};
    s.input = tap.input;
    s.row_stride = tap.input_row_stride;
    s.pixel_stride = tap.input_pixel_stride;
    s.image_stride = tap.input_image_stride;
    s.images = tap.images;
    s.rows = tap.rows;
    s.pixels = tap.pixels;
    s.channels = tap.channels;
    s.planes = input_;
    s.plane_stride = input_stride_;
    if (!kernels_.split_transposed(s)) return false;
    multiply(tap.sums, upcoming);
    return true;
  }

 private:
  void multiply(float* sums, const Upcoming& upcoming) const {
    static constexpr float kZeros[2 * kChannelBlock] = {};
    static constexpr int64_t kNoTap = 0;
    SplitTile t{};
    t.input = input_;
    t.plane_stride = input_stride_;
    t.taps = &kNoTap;
    t.tap_count = 1;
    t.chunks = chunks_;
    t.row_positions = tile_.channels;
    t.part_stride = grad_stride_;
    t.chunk_stride = kernels_.parts * grad_stride_;
    t.output_block_stride = tile_.sums_block_stride;
    t.panels = 1;
    ConvTile output{};
    output.shift = kZeros;
    output.rows = 1;
    output.pixels = tile_.channels;
    output.output_pixel_stride = output.residual_pixel_stride = kChannelBlock;
    for (int64_t block = 0; block < tile_.blocks; block += t.blocks) {
      t.blocks = std::min<int64_t>(2, tile_.blocks - block);
      t.weights = grad_ + block * kSplitBlock;
      output.out_channels = t.blocks * kChannelBlock;
      output.output = sums + block * tile_.sums_block_stride;
      output.residual = output.output;
      output.upcoming = upcoming.part(tile_.blocks, block, t.blocks);
      kernels_.multiply(t, output);
    }
  }

  const SplitKernels& kernels_;
  const WgradTile& tile_;
  const int64_t chunks_;
  const ptrdiff_t input_stride_, grad_stride_;
  Bfloat16 *const input_, *const grad_;
  bool finite_;
};

// Calls part(tap) with each tap of a tile, as a tile of its own.
template <class Part>
void for_each_tap(const WgradTile& tile, const Part& part) {
  WgradTile one = tile;
  one.tap_rows = one.tap_cols = 1;
  for (int64_t r = 0; r < tile.tap_rows; ++r) {
    for (int64_t s = 0; s < tile.tap_cols; ++s) {
      one.input = tile.input + r * tile.tap_row_stride + s * tile.tap_col_stride;
      part(one);
      one.sums += tile.sums_tap_stride;
    }
  }
}

}  // namespace

// In cycles for 32 pixels, as in prefers_tiles(); transposing the input takes the most of them.
bool prefers_split_sums(const Microkernels& kernels, int64_t channels, int64_t out_channels,
                        int64_t taps) {
  if (kernels.split == nullptr) return false;
  struct Costs {
    int64_t input, gradient, products;  // of a channel, of one, of 32 of either
  };
  const auto [input, gradient, product] =
      kernels.split->parts == kBfloat16Parts ? Costs{22, 9, 128} : Costs{60, 25, 480};
  const int64_t pairs = round_up(channels, kSplitPositions) * round_up(out_channels, 32) / 1024;
  const int64_t tiles = input * channels + gradient * out_channels / taps + pairs * product;
  return tiles < channels * out_channels * 32 / 27;
}

void add_split_sums(const Microkernels& kernels, const WgradTile& tile, int64_t out_channels,
                    const Upcoming& upcoming,
                    const std::function<void(const WgradTile&)>& otherwise) {
  const int64_t channels = round_up(tile.channels, kSplitPositions);
  // Beside them are as many of the gradient's values, and the sums.
  const int64_t in_cache = level2_cache_bytes() * 3 / 20 / (2 * kernels.split->parts * channels);
  const int64_t pixels =
      std::clamp(in_cache / kSplitChannels * kSplitChannels, kFewestPixels, kMostPixels);
  Upcoming left = upcoming;
  for_each_part(tile, pixels, [&](const WgradTile& part) {
    const SplitSums sums(*kernels.split, part, out_channels);
    for_each_tap(part, [&](const WgradTile& tap) {
      if (!sums.add(tap, std::exchange(left, {}))) otherwise(tap);
    });
  });
}

}  // namespace fastres::cpu

// Which register tiles a weight's gradient is made of.

#include <algorithm>

#include "../runtime/cache.h"
#include "../split.h"
#include "wgrad.h"
#include "wgrad_split.h"

namespace fastres::cpu {
namespace {

// Pixels for which a tile of the weight's gradient is loaded and stored once, more or less: as many
// as the level-1 cache has room for, two blocks of output channels and one of input channels.
constexpr int64_t kPixelsPerTile = 128;

// Input channels of several sections that are worked on together.
constexpr int64_t kChannelsAtOnce = 256;

// On matrix tiles, of a piece: input channels of one tap and of several, for each of which the
// input is split anew, and blocks of output channels.
constexpr int64_t kTileChannels = 512;
constexpr int64_t kTileTapChannels = 128;
constexpr int64_t kTileUnits = 32;

// Images without borders between them are one image, and such rows one row.
void join(WgradTile& tile) {
  if (tile.tap_rows * tile.tap_cols > 1) return;
  if (tile.input_image_stride == tile.rows * tile.input_row_stride &&
      tile.grad_image_stride == tile.rows * tile.grad_row_stride) {
    tile.rows *= tile.images;
    tile.images = 1;
  }
  if (tile.images == 1 && tile.input_row_stride == tile.pixels * tile.input_pixel_stride &&
      tile.grad_row_stride == tile.pixels * tile.grad_pixel_stride) {
    tile.pixels *= tile.rows;
    tile.rows = 1;
  }
}

// Calls part(tile) for parts of a tile's pixels, whole rows of them where there are several.
template <class Part>
void for_each_block(WgradTile tile, const Part& part) {
  const bool by_rows = tile.rows > 1 || tile.images > 1;
  int64_t& size = by_rows ? tile.rows : tile.pixels;
  const int64_t count = size;
  const int64_t at_once =
      by_rows ? ceil_div(kPixelsPerTile, tile.images * tile.pixels) : kPixelsPerTile;
  const ptrdiff_t input = by_rows ? tile.input_row_stride : tile.input_pixel_stride;
  const ptrdiff_t grad = by_rows ? tile.grad_row_stride : tile.grad_pixel_stride;
  const int64_t parts = ceil_div(count, at_once);
  for (int64_t i = 0; i < parts; ++i) {
    size = even_range(count, parts, i).size();
    part(tile);
    tile.input += size * input;
    tile.grad += size * grad;
  }
}

}  // namespace

WeightSums::WeightSums(const Kernels& kernels, const TrainingConv& conv)
    : kernels_(kernels),
      geometry_(conv.geometry),
      header_(header_of(conv.weight, false, all_taps(conv.weight.kernel.h),
                        all_taps(conv.weight.kernel.w))),
      lanes_(header_.layout == PackedLayout::lanes),
      section_in_(lanes_ ? kChannelBlock : header_.group_in_channels),
      section_out_(lanes_ ? kChannelBlock : header_.group_out_channels()),
      section_units_(lanes_ ? 1 : header_.blocks()),
      units_(lanes_ ? header_.blocks() : header_.blocks() * header_.groups) {}

// Splitting the input takes longer than splitting the output's gradient: threads that share the
// input channels do the less of it, where those are no fewer.
int64_t WeightSums::shares() const {
  if (!on_tiles()) return units_;
  return section_in_ >= section_out_ ? ceil_div(section_in_, kSplitChannels) : ceil_div(units_, 2);
}

std::vector<WeightSums::Piece> WeightSums::tile_pieces(Range shares) const {
  Range units{0, units_}, channels{0, section_in_};
  if (section_in_ >= section_out_) {
    channels = {shares.begin * kSplitChannels,
                std::min<int64_t>(shares.end * kSplitChannels, section_in_)};
  } else {
    units = {2 * shares.begin, std::min(2 * shares.end, units_)};
  }
  const int64_t channel_parts =
      ceil_div(channels.size(), header_.taps() > 1 ? kTileTapChannels : kTileChannels);
  const int64_t unit_parts = ceil_div(units.size(), kTileUnits);
  std::vector<Piece> result;
  for (int64_t u = 0; u < unit_parts; ++u) {
    const Range some = even_range(units.size(), unit_parts, u);
    for (int64_t c = 0; c < channel_parts; ++c) {
      const Range chunk = even_range(ceil_div(channels.size(), kSplitChannels), channel_parts, c);
      result.push_back({{units.begin + some.begin, units.begin + some.end},
                        {channels.begin + chunk.begin * kSplitChannels,
                         std::min(channels.begin + chunk.end * kSplitChannels, channels.end)}});
    }
  }
  return result;
}

std::vector<WeightSums::Piece> WeightSums::pieces(Range units) const {
  if (on_tiles()) return tile_pieces(units);
  const int64_t channels = std::min(section_in_, 2 * kChannelsAtOnce);
  // Half of the level-2 cache for sums.
  const int64_t unit_bytes = channels * header_.taps() * kChannelBlock * int64_t{sizeof(float)};
  const int64_t in_cache = std::max<int64_t>(2, level2_cache_bytes() / 2 / unit_bytes);
  const int64_t sections = std::max<int64_t>(1, kChannelsAtOnce / section_in_);
  const int64_t at_once = std::min(in_cache, sections * section_units_);
  const int64_t parts = ceil_div(section_in_, channels);
  std::vector<Piece> result;
  for (int64_t unit = units.begin; unit < units.end;) {
    const int64_t section_end = (unit / section_units_ + 1) * section_units_;
    const int64_t last = parts > 1 ? std::min(section_end, units.end) : units.end;
    const int64_t end = std::min(unit + at_once, last);
    for (int64_t i = 0; i < parts; ++i) {
      result.push_back({{unit, end}, even_range(section_in_, parts, i)});
    }
    unit = end;
  }
  return result;
}

Range WeightSums::input_channels(const Piece& piece) const {
  const int64_t first = piece.units.begin / section_units_ * section_in_;
  const int64_t last = (piece.units.end - 1) / section_units_ * section_in_;
  return {first + piece.channels.begin, std::min(last + piece.channels.end, geometry_.in_channels)};
}

Range WeightSums::output_channels(const Piece& piece) const {
  const int64_t last = piece.units.end - 1;
  const int64_t section_end = (last / section_units_ + 1) * section_out_;
  return {first_output(piece.units.begin),
          std::min({first_output(last) + kChannelBlock, section_end, geometry_.out_channels})};
}

void WeightSums::add(const WgradBands& bands, const Piece& piece, float* sums) const {
  WgradTile tile = tile_of(bands);
  join(tile);
  tile.sums = sums + piece.units.begin * unit_floats() + piece.channels.begin * kChannelBlock;
  if (prefers_tiles(piece)) {
    tile.channels = piece.channels.size();
    tile.blocks = piece.units.size();
    return add_split_sums(kernels_.base, tile, output_channels(piece).size(), bands.upcoming,
                          [&](const WgradTile& part) { add_block(part, piece); });
  }
  for_each_block(tile, [&](const WgradTile& block) { add_block(block, piece); });
}

bool WeightSums::prefers_tiles(const Piece& piece) const {
  return !lanes_ && header_.groups == 1 &&
         prefers_split_sums(kernels_.base, piece.channels.size(), output_channels(piece).size(),
                            header_.taps());
}

WgradTile WeightSums::tile_of(const WgradBands& bands) const {
  const ConvGeometry& g = geometry_;
  WgradTile tile{};
  tile.grad = bands.gradient.data;
  tile.grad_image_stride = bands.gradient_image_stride;
  tile.grad_row_stride = bands.gradient.row_stride;
  tile.grad_pixel_stride = bands.gradient.pixel_stride;
  tile.input = bands.input.data;
  tile.input_image_stride = bands.input_image_stride;
  tile.input_row_stride = g.stride.h * bands.input.row_stride;
  tile.input_pixel_stride = g.stride.w * bands.input.pixel_stride;
  tile.images = bands.images;
  tile.rows = bands.rows;
  tile.pixels = bands.pixels;
  tile.tap_rows = g.kernel.h;
  tile.tap_cols = g.kernel.w;
  tile.tap_row_stride = g.dilation.h * bands.input.row_stride;
  tile.tap_col_stride = g.dilation.w * bands.input.pixel_stride;
  tile.sums_tap_stride = section_in_ * kChannelBlock;
  tile.sums_block_stride = unit_floats();
  return tile;
}

void WeightSums::add_block(WgradTile tile, const Piece& piece) const {
  const float* input = tile.input;
  const float* grad = tile.grad;
  float* sums = tile.sums;
  const int64_t first_section = piece.units.begin / section_units_;
  for (int64_t unit = piece.units.begin; unit < piece.units.end; unit += tile.blocks) {
    const int64_t section = unit / section_units_;
    const int64_t left = std::min((section + 1) * section_units_, piece.units.end) - unit;
    tile.blocks = std::min<int64_t>(2, left);
    tile.input = input + (section - first_section) * section_in_;
    tile.grad = grad + first_output(unit) - first_output(piece.units.begin);
    tile.sums = sums + (unit - piece.units.begin) * unit_floats();
    if (lanes_) {
      kernels_.training.wgrad_lanes(tile, header_.group_in_channels);
    } else {
      add_taps(tile, piece.channels);
    }
  }
}

void WeightSums::add_taps(WgradTile tile, Range channels) const {
  const float* input = tile.input;
  float* sums = tile.sums;
  // The taps of a kernel row are adjacent in memory: one run instead of several short ones.
  const bool joined =
      tile.tap_cols > 1 && channels.size() == section_in_ && tile.tap_col_stride == section_in_;
  const int64_t cols = joined ? 1 : tile.tap_cols;
  tile.channels = joined ? tile.tap_cols * section_in_ : channels.size();
  for (int64_t r = 0; r < tile.tap_rows; ++r) {
    for (int64_t s = 0; s < cols; ++s) {
      tile.input = input + r * tile.tap_row_stride + s * tile.tap_col_stride;
      tile.sums = sums + (r * tile.tap_cols + s) * tile.sums_tap_stride;
      kernels_.training.wgrad(tile);
    }
  }
}

}  // namespace fastres::cpu

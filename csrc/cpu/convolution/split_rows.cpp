#include "split_rows.h"

#include <algorithm>

#include "../runtime/cache.h"
#include "panels.h"

namespace fastres::cpu {
namespace {

// Of a 1x1 convolution's reduction, at most so many channels at a time.
constexpr int64_t kPartChannels = 512;

// Of a larger kernel's whose split weights are not kept: the cache has room for more rows of fewer
// channels, and the weights are split for all of them.
constexpr int64_t kKernelPartChannels = 64;

// Of some groups, about so many channels at a time: a line of each pixel would be in a page of its
// own, and all of them leave the cache room for few rows, and weights are split for those.
constexpr int64_t kGroupChannels = 128;

// Of the split weights that a thread keeps of a layer: more come from beyond the level-2 cache
// either way.
constexpr int64_t kMostKeptBytes = int64_t{1} << 19;

// What tiles convolve. Narrow groups are taken sixteen channels at a time. Else a kernel's columns
// of so few channels that those of all fit in one row of a tile are one column of more channels.
// Packed weights have them in this order.
PackedHeader tiled_header(const ConvLayer& layer) {
  PackedHeader h = layer.header;
  if (h.layout == PackedLayout::bfloat16) {
    h.layout = PackedLayout::igemm;
    return h;
  }
  if (has_narrow_groups(h)) {
    h.layout = PackedLayout::igemm;
    h.groups = h.out_channels / static_cast<int32_t>(kChannelBlock);
    h.group_in_channels = static_cast<int32_t>(kChannelBlock);
    return h;
  }
  const int64_t values = int64_t{h.kernel_w} * h.group_in_channels;
  if (h.groups > 1 || h.kernel_w == 1 || layer.dilation.w > 1 || values > kSplitChannels) return h;
  h.group_in_channels = static_cast<int32_t>(values);
  h.kernel_w = 1;
  return h;
}

TapGrid taps_of(const ConvLayer& layer) {
  const PackedHeader h = tiled_header(layer);
  return {{h.kernel_h, h.kernel_w}, layer.stride, layer.dilation};
}

// Of a row of so many output pixels.
int64_t row_positions(const ConvLayer& layer, int64_t pixels) {
  const TapGrid t = taps_of(layer);
  return positions_read(pixels, t.kernel.w, t.dilation.w, t.stride.w, 0);
}

int64_t panel_values(const SplitKernels& kernels, const PackedHeader& h) {
  return h.taps() * split_chunks(h.group_in_channels) * kernels.parts * 2 * kSplitBlock;
}

// Outputs of bfloat16 could not take sums in between.
int64_t reduction_parts(const Microkernels& kernels, const ConvLayer& layer) {
  const PackedHeader h = tiled_header(layer);
  if (kernels.split->parts == kBfloat16Parts) return 1;
  if (h.taps() == 1) return ceil_div(h.group_in_channels, kPartChannels);
  if (h.groups > 1 || fits_kept_panels(kernels, layer)) return 1;
  return ceil_div(h.group_in_channels, kKernelPartChannels);
}

// The most that one part of the reduction has.
int64_t part_chunks(const Microkernels& kernels, const ConvLayer& layer) {
  const int64_t chunks = split_chunks(tiled_header(layer).group_in_channels);
  return ceil_div(chunks, reduction_parts(kernels, layer));
}

// Of a panel the most that one part of the reduction has.
int64_t panel_part_values(const Microkernels& kernels, const ConvLayer& layer) {
  const PackedHeader h = tiled_header(layer);
  return panel_values(*kernels.split, h) / split_chunks(h.group_in_channels) *
         part_chunks(kernels, layer);
}

// Whether the level-2 cache has room for a panel's split weights beside those that are multiplied.
bool has_room_ahead(const Microkernels& kernels, const ConvLayer& layer) {
  return 2 * panel_part_values(kernels, layer) * int64_t{sizeof(Bfloat16)} <=
         level2_cache_bytes() / 4;
}

// Bytes of the level-2 cache for the input's parts; weights and outputs pass through the rest.
int64_t planes_in_cache() { return level2_cache_bytes() * 3 / 10; }

// In cycles of a core that does 32 fused multiply-adds or 512 of a tile's in each: from counts of
// instructions, and a quarter more for what they wait for.
struct Costs {
  int64_t splitting;  // 32 channels of a position
  int64_t scattered;  // the same of several phases: pixels apart are not foreseen
  int64_t products;   // 32 x 32 of a position
  int64_t finishing;  // 32 outputs of a position, beyond what register tiles take for it
  int64_t adding;     // the same to those of the parts before
  int64_t weights;    // splitting 32 x 32
  int64_t ahead;      // the same while others are multiplied
};

Costs costs(const SplitKernels& kernels) {
  return kernels.parts == kBfloat16Parts ? Costs{8, 16, 3, 4, 0, 300, 300}
                                         : Costs{28, 43, 15, 0, 8, 1300, 1050};
}

// Cycles per row of so many output pixels in which 32 x 32 weights are split, by every band.
int64_t splitting_per_row(const Microkernels& kernels, const ConvLayer& layer, int64_t pixels) {
  if (layer.outputs == 0) return 0;
  const int64_t rows = layer.outputs / pixels;
  const int64_t at_once = std::max<int64_t>(1, split_rows_in_cache(kernels, layer, pixels));
  const Costs cost = costs(*kernels.split);
  const bool ahead = has_room_ahead(kernels, layer);
  return (ahead ? cost.ahead : cost.weights) * ceil_div(rows, at_once) / rows;
}

}  // namespace

bool prefers_tiles(const Microkernels& kernels, const ConvLayer& layer, int64_t pixels) {
  const bool packed = layer.header.layout == PackedLayout::bfloat16;
  if (packed && !multiplies_bfloat16(kernels)) return false;
  if (has_narrow_groups(layer.header)) return multiplies_bfloat16(kernels);
  const PackedHeader h = tiled_header(layer);
  if (kernels.split == nullptr || h.layout != PackedLayout::igemm) return false;
  if (h.groups > 1 && h.group_in_channels % kSplitChannels != 0) return false;
  if (h.taps() == 1) pixels = 1;  // however many rows a band has joined
  const int64_t chunks = split_chunks(h.group_in_channels);
  if (h.taps() > 1 && 2 * panel_part_values(kernels, layer) > planes_in_cache()) return false;
  const int64_t positions = row_positions(layer, pixels);
  const int64_t phases = phases_read(taps_of(layer));
  const Costs cost = costs(*kernels.split);
  const int64_t splitting = phases > 1 ? cost.scattered : cost.splitting;
  const int64_t outputs = h.group_out_channels();
  const int64_t panels = ceil_div(outputs, kernels.panel_channels);
  const int64_t parts = reduction_parts(kernels, layer);
  const int64_t tiles =
      positions * chunks * (splitting * phases + cost.products * h.taps() * panels) +
      positions * panels * (cost.finishing + (parts - 1) * cost.adding) +
      (packed ? 0 : splitting_per_row(kernels, layer, pixels) * h.taps() * chunks * panels);
  return tiles < pixels * outputs * h.taps() * h.group_in_channels / 27;
}

int64_t shared_outputs(const PackedHeader& header, int64_t batch, Extent out) {
  return (header.taps() == 1 ? batch : 1) * out.h * out.w;
}

int64_t split_rows_in_cache(const Microkernels& kernels, const ConvLayer& layer, int64_t pixels) {
  const PackedHeader h = tiled_header(layer);
  const int64_t part_channels =
      std::min<int64_t>(part_chunks(kernels, layer) * kSplitChannels, h.group_in_channels);
  const int64_t channels = part_channels * split_groups_at_once(h);
  const int64_t values = phases_read(taps_of(layer)) * row_positions(layer, pixels) * channels;
  return planes_in_cache() / (kernels.split->parts * values * int64_t{sizeof(Bfloat16)});
}

bool has_narrow_groups(const PackedHeader& h) {
  const int64_t width = h.group_in_channels;
  return h.groups > 1 && width == h.group_out_channels() && width >= 4 && width <= kChannelBlock &&
         kChannelBlock % width == 0 && h.out_channels % kSplitChannels == 0;
}

int64_t split_groups_at_once(const PackedHeader& header) {
  return std::clamp<int64_t>(kGroupChannels / header.group_in_channels, 1, header.groups);
}

SplitBand::SplitBand(const Microkernels& kernels, const ConvLayer& layer, const ConvBand& band,
                     Range groups)
    : kernels_(*kernels.split),
      header_(tiled_header(layer)),
      narrow_width_(has_narrow_groups(layer.header) ? layer.header.group_in_channels : 0),
      groups_(groups),
      positions_(taps_of(layer), {band.rows, band.pixels}),
      parts_(reduction_parts(kernels, layer)),
      part_values_(panel_part_values(kernels, layer)),
      // An odd number of cache lines: planes a power of two apart would fall into the same sets.
      plane_stride_((positions_.count() | 1) * kSplitChannels),
      packed_(layer.header.layout == PackedLayout::bfloat16),
      packed_panels_(packed_ && layer.plain == nullptr && fits_kept_panels(kernels, layer)
                         ? reinterpret_cast<const Bfloat16*>(layer.weights)
                         : nullptr),
      kept_(layer.split_panels),
      has_room_ahead_(has_room_ahead(kernels, layer)) {
  const int64_t planes = groups.size() * split_chunks(header_.group_in_channels) * kernels_.parts;
  const int64_t bytes = planes * plane_stride_ * int64_t{sizeof(Bfloat16)};
  loads_all_parts_ = layer.plain != nullptr && bytes <= planes_in_cache();
}

Range SplitBand::channels(int64_t part) const {
  const Range chunks = even_range(split_chunks(header_.group_in_channels), parts_, part);
  return {chunks.begin * kSplitChannels,
          std::min<int64_t>(chunks.end * kSplitChannels, header_.group_in_channels)};
}

void SplitBand::load(const ConvBand& band, Range parts) {
  loaded_ = parts;
  const int64_t first = channels(parts.begin).begin;
  SplitPixels s{};
  s.channels = groups_.size() * (channels(parts.end - 1).end - first);
  planes_ =
      thread_scratch().planes.bfloat16s(split_chunks(s.channels) * kernels_.parts * plane_stride_);
  s.planes = planes_;
  s.plane_stride = plane_stride_;
  s.must_be_finite = narrow_width_ > 0;
  finite_ = positions_.split(kernels_, band, groups_.begin * header_.group_in_channels + first, s);
}

bool SplitBand::is_split(const PanelPart& weights) const {
  if (packed_) return true;
  if (kept_ == nullptr) return last_.panel == weights.panel && last_.part == weights.part;
  return kept_->state(weights.panel, weights.part) != SplitPanels::State::unknown;
}

// Of several taps all channels are one part.
Bfloat16* SplitBand::kept_place(const PanelPart& weights) const {
  const int64_t blocks = ceil_div(weights.tile.out_channels, kChannelBlock);
  return kept_->panel(weights.panel) +
         channels(weights.part).begin * kernels_.parts * blocks * kChannelBlock;
}

Bfloat16* SplitBand::next_place() {
  const int64_t places = has_room_ahead_ ? 2 : 1;
  place_ = (place_ + 1) % places;
  return thread_scratch().split_weights.bfloat16s(places * part_values_) + place_ * part_values_;
}

SplitWeights SplitBand::unsplit(const PanelPart& weights) {
  const auto& [tile, panel, part] = weights;
  SplitWeights w{};
  w.weights = tile.weights;
  w.block_stride = tile.weight_block_stride;
  w.tap_stride = header_.group_in_channels * kChannelBlock;
  w.blocks = ceil_div(tile.out_channels, kChannelBlock);
  w.taps = header_.taps();
  w.channels = channels(part).size();
  if (narrow_width_ > 0) {
    w.group_width = narrow_width_;
    w.half = panel % 2;
  }
  w.target = kept_ != nullptr ? kept_place(weights) : next_place();
  return w;
}

const Bfloat16* SplitBand::remember(const PanelPart& weights, const Bfloat16* target,
                                    bool have_parts) {
  const Bfloat16* split = have_parts ? target : nullptr;
  if (kept_ == nullptr) {
    last_ = {weights.panel, weights.part, split};
  } else {
    kept_->state(weights.panel, weights.part) =
        have_parts ? SplitPanels::State::split : SplitPanels::State::without_parts;
  }
  return split;
}

const Bfloat16* SplitBand::split_weights(const PanelPart& weights) {
  if (packed_) return reinterpret_cast<const Bfloat16*>(weights.tile.weights);
  if (!is_split(weights)) {
    const SplitWeights w = unsplit(weights);
    return remember(weights, w.target, kernels_.split_weights(w));
  }
  if (kept_ == nullptr) return last_.weights;
  const auto state = kept_->state(weights.panel, weights.part);
  return state == SplitPanels::State::split ? kept_place(weights) : nullptr;
}

SplitTile SplitBand::tile_of(int64_t group, int64_t part, int64_t blocks) const {
  SplitTile t{};
  t.chunks = split_chunks(channels(part).size());
  const int64_t first = (channels(part).begin - channels(loaded_.begin).begin) / kSplitChannels;
  int64_t chunk = (group - groups_.begin) * t.chunks + first;
  if (narrow_width_ > 0) chunk /= 2;
  t.input = planes_ + chunk * kernels_.parts * plane_stride_;
  t.plane_stride = plane_stride_;
  t.taps = positions_.taps().data();
  t.tap_count = header_.taps();
  t.blocks = blocks;
  t.row_positions = positions_.row();
  t.part_stride = (packed_ ? kBfloat16PanelBlocks : t.blocks) * kSplitBlock;
  t.chunk_stride = kernels_.parts * t.part_stride;
  t.output_block_stride = kChannelBlock;
  t.panels = 1;
  return t;
}

bool SplitBand::multiply(const PanelPart& weights, int64_t group, const PanelPart* next) {
  if (!finite_) return false;
  const ConvTile& tile = weights.tile;
  SplitTile t = tile_of(group, weights.part, ceil_div(tile.out_channels, kChannelBlock));
  t.weights = split_weights(weights);
  if (t.weights == nullptr) return false;
  if (next == nullptr || !has_room_ahead_ || is_split(*next)) {
    kernels_.multiply(t, tile);
    return true;
  }
  const SplitWeights ahead = unsplit(*next);
  t.next = &ahead;
  remember(*next, ahead.target, kernels_.multiply(t, tile));
  return true;
}

bool SplitBand::multiply_kept(const ConvTile& tile, Range panels) const {
  if (!finite_) return false;
  SplitTile t = tile_of(0, 0, 2);
  t.weights = packed_panels_ != nullptr
                  ? packed_panels_ + panels.begin * panel_values(kernels_, header_)
                  : kept_->panel(panels.begin);
  t.panels = panels.size();
  t.panel_stride = panel_values(kernels_, header_);
  kernels_.multiply(t, tile);
  return true;
}

SplitPanels::SplitPanels(const Microkernels& kernels, const ConvLayer& layer, Scratch& memory)
    : parts_(reduction_parts(kernels, layer)),
      panel_values_(panel_values(*kernels.split, tiled_header(layer))) {
  const int64_t panels = panel_count(kernels, layer);
  memory_ = memory.bfloat16s(panels * panel_values_);
  states_.resize(static_cast<size_t>(panels * parts_), State::unknown);
}

SplitPanels::State& SplitPanels::state(int64_t panel, int64_t part) {
  return states_[static_cast<size_t>(panel * parts_ + part)];
}

bool fits_kept_panels(const Microkernels& kernels, const ConvLayer& layer) {
  const int64_t values =
      panel_count(kernels, layer) * panel_values(*kernels.split, tiled_header(layer));
  return values * int64_t{sizeof(Bfloat16)} <= kMostKeptBytes;
}

std::optional<SplitPanels> kept_panels(const Microkernels& kernels, const ConvLayer& layer,
                                       int64_t pixels, int64_t bands, Scratch& memory) {
  if (bands < 2 || !prefers_tiles(kernels, layer, pixels)) return std::nullopt;
  if (has_narrow_groups(layer.header)) return std::nullopt;  // which have few
  if (layer.header.layout == PackedLayout::bfloat16) return std::nullopt;
  if (!fits_kept_panels(kernels, layer)) return std::nullopt;
  return SplitPanels(kernels, layer, memory);
}

}  // namespace fastres::cpu

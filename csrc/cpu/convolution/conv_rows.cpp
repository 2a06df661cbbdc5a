#include "conv_rows.h"

#include <algorithm>
#include <span>
#include <vector>

#include "../runtime/cache.h"
#include "../runtime/scratch.h"
#include "narrow_tiles.h"
#include "pack_on_use.h"
#include "plain_weight.h"
#include "split_rows.h"
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

ConvTile tile_of(const ConvLayer& layer, const ConvBand& band) {
  const PackedHeader& h = layer.header;
  ConvTile t{};
  t.input = band.input.data;
  t.input_row_stride = band.input.row_stride * layer.stride.h;
  t.input_pixel_stride = band.input.pixel_stride * layer.stride.w;
  t.tap_rows = h.kernel_h;
  t.tap_cols = h.kernel_w;
  t.tap_row_stride = band.input.row_stride * layer.dilation.h;
  t.tap_col_stride = band.input.pixel_stride * layer.dilation.w;
  t.channels = h.group_in_channels;
  if (h.layout == PackedLayout::igemm && t.tap_col_stride == t.channels) {
    // The taps of a kernel row are adjacent in memory: one run instead of several short ones.
    t.channels *= t.tap_cols;
    t.tap_cols = 1;
  }
  t.weights = layer.weights;
  t.weight_block_stride = h.block_stride();
  set_outputs(t, layer, band);
  return t;
}

int64_t panels_per_group(const Microkernels& kernels, const ConvLayer& layer) {
  return (layer.header.group_out_channels() + kernels.panel_channels - 1) / kernels.panel_channels;
}

// Floats that take as many bytes as a panel packed in bfloat16.
int64_t bfloat16_panel_floats(const PackedHeader& h) { return h.block_stride(); }

const float* panel_weights(const Microkernels& kernels, const ConvLayer& layer, int64_t panel) {
  if (layer.header.layout == PackedLayout::bfloat16) {
    const int64_t first_panel = layer.first_block / kBfloat16PanelBlocks;
    return layer.weights + (panel - first_panel) * bfloat16_panel_floats(layer.header);
  }
  const int64_t channel = panel % panels_per_group(kernels, layer) * kernels.panel_channels;
  const int64_t block = panel_blocks(kernels, layer, panel).begin - layer.first_block;
  return layer.weights + block * layer.header.block_stride() + channel % kChannelBlock;
}

// The layer with this panel packed into the level-2 cache, in `memory`; of a part of the reduction
// these input channels alone.
ConvLayer packed_panel(const Microkernels& kernels, ConvLayer layer, int64_t panel, Range channels,
                       Scratch& memory) {
  const Range blocks = panel_blocks(kernels, layer, panel);
  float* packed = memory.floats(blocks.size() * layer.header.block_stride());
  if (layer.header.layout == PackedLayout::bfloat16) {
    pack_bfloat16_panels(kernels, layer.header, *layer.plain, {panel, panel + 1},
                         reinterpret_cast<Bfloat16*>(packed));
  } else {
    pack_block_channels(kernels, layer.header, *layer.plain, blocks, channels, packed);
  }
  layer.weights = packed;
  layer.first_block = blocks.begin;
  return layer;
}

Range all_channels(const ConvLayer& layer) { return {0, layer.header.group_in_channels}; }

// Some input channels of a group.
struct Reduction {
  Range channels;
  bool whole;
};

// The i-th of so many equal parts of each span, and those after it.
FetchList part_of(FetchList list, int64_t parts, int64_t i, int64_t count = 1) {
  for (FloatSpan& span : list.spans) {
    const int64_t begin = even_range(span.count, parts, i).begin;
    span = {span.data + begin, even_range(span.count, parts, i + count - 1).end - begin};
  }
  return list;
}

// The next panel's weights, of a part of the reduction the first tap's, or what they have to be
// packed of; and whether it is that.
FloatSpan next_weights(const Microkernels& kernels, const ConvLayer& layer, int64_t next,
                       const Reduction& reduction, bool& plain) {
  const Range blocks = panel_blocks(kernels, layer, next);
  plain = true;
  if (layer.plain != nullptr) {
    return reduction.whole ? plain_values(layer.header, *layer.plain, blocks)
                           : plain_channels(layer.header, *layer.plain, blocks, reduction.channels);
  }
  if (layer.packing != nullptr) {
    const FloatSpan unpacked = layer.packing->unpacked(blocks);
    if (unpacked.count > 0) return unpacked;
  }
  plain = false;
  FloatSpan weights = panel_floats(kernels, layer, next);
  if (!reduction.whole) {
    weights.data += reduction.channels.begin * kChannelBlock;
    weights.count = reduction.channels.size() * kChannelBlock;
  }
  return weights;
}

// Fetched while the i-th panel is computed: what a later one, so many after it, has to be packed
// of, or a share of what comes after all panels, and the later one's weights, unless they are in
// the cache by then.
void set_next(const Microkernels& kernels, const ConvLayer& layer, Range panels, int64_t i,
              int64_t later, const Reduction& reduction, ConvTile& t) {
  const int64_t next = nth_panel(layer, panels, i + later);
  FloatSpan weights;
  bool plain = false;
  if (next >= 0) weights = next_weights(kernels, layer, next, reduction, plain);
  if (plain) {
    t.upcoming.spans[0] = weights;
    return;
  }
  const Upcoming& upcoming = layer.upcoming;
  const bool in_cache = !upcoming.empty() && weight_bytes(layer) <= level2_cache_bytes() / 4;
  t.upcoming = upcoming.part(panels.size(), i);
  if (!in_cache) t.upcoming.spans[upcoming.size()] = weights;
}

// What a tile is of a part of the reduction: it adds to what the parts before have left in the
// output. For register tiles, of a 1x1 alone: its weights are no longer adjacent.
void select_inputs(ConvTile& t, const Reduction& reduction, int64_t all_channels) {
  if (reduction.whole) return;
  static constexpr float kZeros[64] = {};
  const Range channels = reduction.channels;
  t.input += channels.begin;
  t.weights += channels.begin * kChannelBlock;
  t.channels = channels.size();
  if (channels.begin > 0) {
    t.residual = t.output;
    t.residual_row_stride = t.output_row_stride;
    t.residual_pixel_stride = t.output_pixel_stride;
  }
  if (channels.end == all_channels) return;
  t.shift = kZeros;
  t.act = Activation::none;
}

// The weights of the i-th panel, packed by then, of these input channels at least; until the next
// panel but one's.
const float* ready_weights(const Microkernels& kernels, const ConvLayer& layer, int64_t panel,
                           int64_t i, Range channels) {
  if (layer.packing != nullptr) layer.packing->prepare(panel_blocks(kernels, layer, panel));
  if (layer.plain == nullptr) return panel_weights(kernels, layer, panel);
  ThreadScratch& scratch = thread_scratch();
  Scratch& memory = i % 2 == 0 ? scratch.weights : scratch.next_weights;
  return panel_weights(kernels, packed_panel(kernels, layer, panel, channels, memory), panel);
}

// One panel's tile, of the whole reduction.
ConvTile panel_tile(const Microkernels& kernels, const ConvLayer& layer, ConvTile t, int64_t panel,
                    const float* weights) {
  t.input += panel / panels_per_group(kernels, layer) * layer.header.group_in_channels;
  t.weights = weights;
  select_outputs(t, panel_channels(kernels, layer, {panel, panel + 1}));
  return t;
}
ConvTile nth_panel_tile(const Microkernels& kernels, const ConvLayer& layer, const ConvTile& t,
                        Range panels, int64_t i, Range channels) {
  const int64_t panel = nth_panel(layer, panels, i);
  return panel_tile(kernels, layer, t, panel, ready_weights(kernels, layer, panel, i, channels));
}

// Whether a pixel's outputs can be written one after the other, for all panels before the next
// pixels. Lines that follow each other come sooner from memory.
bool goes_by_pixels(const Microkernels& kernels, const ConvLayer& layer, Range panels,
                    const SplitBand& split) {
  const PackedHeader& h = layer.header;
  return split.keeps_panels() && panels.size() > 1 && h.groups == 1 &&
         kernels.panel_channels == 2 * kChannelBlock &&
         h.out_channels % kernels.panel_channels == 0;
}

// All panels side by side. False, and nothing is written, where a value has no bfloat16 parts.
bool split_pixels(const Microkernels& kernels, const ConvLayer& layer, const ConvTile& tile,
                  Range panels, SplitBand& split) {
  for (int64_t i = 0; i < panels.size(); ++i) {
    const ConvTile t = nth_panel_tile(kernels, layer, tile, panels, i, all_channels(layer));
    if (!split.split(t, nth_panel(layer, panels, i))) return false;
  }
  ConvTile t = tile;
  select_outputs(t, panel_channels(kernels, layer, panels));
  t.upcoming = layer.upcoming.part(1, 0);
  if (!split.multiply_kept(t, panels)) return false;
  for (int64_t i = 0; layer.finished != nullptr && i < panels.size(); ++i) {
    (*layer.finished)(nth_panel(layer, panels, i));
  }
  return true;
}

// All panels, for the parts of the reduction that are loaded; what comes next is split meanwhile.
// Of a kernel in parts those `computed` have all of them already; empty for others.
void split_panels(const Microkernels& kernels, const ConvLayer& layer, const ConvTile& tile,
                  Range panels, SplitBand& split, Range parts, std::vector<bool>& computed) {
  const auto reduction = [&](int64_t part) {
    return Reduction{split.channels(part), split.parts() == 1};
  };
  const auto select = [&](ConvTile t, int64_t i, int64_t part) {
    select_inputs(t, reduction(part), layer.header.group_in_channels);
    return SplitBand::PanelPart{t, nth_panel(layer, panels, i), part};
  };
  const auto nth_tile = [&](int64_t i, Range channels) {
    return nth_panel_tile(kernels, layer, tile, panels, i, channels);
  };
  const bool all = parts.size() == split.parts();
  const Range loaded = all ? all_channels(layer) : split.channels(parts.begin);
  ConvTile whole = nth_tile(0, loaded);
  for (int64_t i = 0; i < panels.size(); ++i) {
    const int64_t panel = nth_panel(layer, panels, i);
    const bool last = i + 1 == panels.size();
    const ConvTile next_whole = last ? whole : nth_tile(i + 1, loaded);
    for (int64_t part = parts.begin; part < parts.end; ++part) {
      const bool goes_on = part + 1 < parts.end;
      SplitBand::PanelPart here = select(whole, i, part);
      const SplitBand::PanelPart next =
          goes_on ? select(whole, i, part + 1) : select(next_whole, i + 1, parts.begin);
      set_next(kernels, layer, panels, i, split.splits_ahead() ? 2 : 1, reduction(part), here.tile);
      const int64_t group = panel / panels_per_group(kernels, layer);
      if (!computed.empty() && computed[static_cast<size_t>(i)]) continue;
      if (split.multiply(here, group, last && !goes_on ? nullptr : &next)) continue;
      // Register tiles cannot take a part of every tap. (A 1x1's residual may be its output, which
      // has lost it by the second part.)
      kernels.igemm(computed.empty() ? here.tile : nth_tile(i, all_channels(layer)));
      if (!computed.empty()) computed[static_cast<size_t>(i)] = true;
    }
    if (layer.finished != nullptr && parts.end == split.parts()) (*layer.finished)(panel);
    whole = next_whole;
  }
}

// On matrix tiles, some groups after the others.
void tile_panels(const Microkernels& kernels, ConvLayer layer, const ConvBand& band, Range panels) {
  if (layer.header.groups > 1) layer.first_panel = 0;
  const ConvTile tile = tile_of(layer, band);
  const int64_t per_group = panels_per_group(kernels, layer);
  const int64_t at_once = per_group * split_groups_at_once(layer.header);
  for (int64_t first = panels.begin; first < panels.end;) {
    const Range some{first, std::min(panels.end, (first / at_once + 1) * at_once)};
    SplitBand split(kernels, layer, band, {some.begin / per_group, (some.end - 1) / per_group + 1});
    std::vector<bool> computed;
    if (layer.header.taps() > 1 && split.parts() > 1) computed.resize(some.size());
    const int64_t parts = split.loads_all_parts() ? split.parts() : 1;
    for (int64_t part = 0; part < split.parts(); part += parts) {
      split.load(band, {part, part + parts});
      if (goes_by_pixels(kernels, layer, some, split) &&
          split_pixels(kernels, layer, tile, some, split)) {
        continue;
      }
      split_panels(kernels, layer, tile, some, split, {part, part + parts}, computed);
    }
    first = some.end;
  }
}

// On register tiles, a panel for all bands before the next.
void register_panels(const Microkernels& kernels, const ConvLayer& layer,
                     std::span<const ConvBand> bands, Range panels) {
  for (int64_t i = 0; i < panels.size(); ++i) {
    const int64_t panel = nth_panel(layer, panels, i);
    const float* weights = ready_weights(kernels, layer, panel, i, all_channels(layer));
    FetchList next;
    for (int64_t b = 0; b < std::ssize(bands); ++b) {
      const ConvTile band = tile_of(layer, bands[static_cast<size_t>(b)]);
      ConvTile t = panel_tile(kernels, layer, band, panel, weights);
      if (b == 0) {
        set_next(kernels, layer, panels, i, 1, {{0, t.channels}, true}, t);
        next = t.upcoming;
      }
      t.upcoming = part_of(next, std::ssize(bands), b);
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

template <class T>
void set_strides(ConvTile& t, const PixelRows<T>& residual, const PixelRows<T>& output) {
  t.residual_row_stride = residual.row_stride;
  t.residual_pixel_stride = residual.pixel_stride;
  t.output_row_stride = output.row_stride;
  t.output_pixel_stride = output.pixel_stride;
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

void set_outputs(ConvTile& t, const ConvLayer& layer, const ConvBand& band) {
  t.shift = layer.shift;
  t.residual = band.residual.data;
  t.output = band.output.data;
  t.residual16 = band.residual16.data;
  t.output16 = band.output16.data;
  if (t.output16 != nullptr) {
    set_strides(t, band.residual16, band.output16);
  } else {
    set_strides(t, band.residual, band.output);
  }
  t.rows = band.rows;
  t.pixels = band.pixels;
  t.out_channels = layer.header.out_channels;
  t.act = layer.act;
  t.act_slope = layer.act_slope;
}

void select_outputs(ConvTile& t, Range channels) {
  t.shift += channels.begin;
  if (t.residual != nullptr) t.residual += channels.begin;
  if (t.output != nullptr) t.output += channels.begin;
  if (t.residual16 != nullptr) t.residual16 += channels.begin;
  if (t.output16 != nullptr) t.output16 += channels.begin;
  t.out_channels = channels.size();
}

void Upcoming::add_rows(const Image& image, int64_t n, int64_t begin, int64_t end) {
  end = std::min(end, image.height);
  if (!image.channels_adjacent() || begin >= end) return;
  if (image.stride_h > 2 * image.width * image.channels) return;
  const int64_t bytes = (end - begin) * image.stride_h * image.element_bytes();
  add({reinterpret_cast<const float*>(image.at(n, begin, 0)), bytes / int64_t{sizeof(float)}});
}

FetchList Upcoming::part(int64_t parts, int64_t i, int64_t count) const {
  return part_of(list_, parts, i, count);
}

int64_t nth_panel(const ConvLayer& layer, Range panels, int64_t i) {
  if (i >= panels.size()) return -1;
  const int64_t rotated = i + layer.first_panel;
  return panels.begin + (rotated < panels.size() ? rotated : rotated - panels.size());
}

int64_t scratch_pixel_stride(const ConvLayer& layer) {
  const PackedHeader& h = layer.header;
  const int64_t channels = h.groups * h.group_in_channels;
  return h.groups == 1 ? channels : band_pixel_stride(channels);
}

int64_t panel_count(const Microkernels& kernels, const ConvLayer& layer) {
  if (layer.header.layout == PackedLayout::lanes) return layer.header.blocks();
  return layer.header.groups * panels_per_group(kernels, layer);
}

Range panel_channels(const Microkernels& kernels, const ConvLayer& layer, Range panels) {
  const PackedHeader& h = layer.header;
  if (h.layout == PackedLayout::lanes) {
    return {panels.begin * kChannelBlock,
            std::min<int64_t>(panels.end * kChannelBlock, h.out_channels)};
  }
  const int64_t per_group = panels_per_group(kernels, layer);
  const auto first_channel = [&](int64_t panel) {
    return panel / per_group * h.group_out_channels() + panel % per_group * kernels.panel_channels;
  };
  return {first_channel(panels.begin), first_channel(panels.end)};
}

Range panel_blocks(const Microkernels& kernels, const ConvLayer& layer, int64_t panel) {
  const PackedHeader& h = layer.header;
  const int64_t per_group = panels_per_group(kernels, layer);
  const int64_t first = panel % per_group * kernels.panel_channels;
  const int64_t channels = std::min(kernels.panel_channels, h.group_out_channels() - first);
  const int64_t block = panel / per_group * h.blocks() + first / kChannelBlock;
  return {block, block + (channels + kChannelBlock - 1) / kChannelBlock};
}

FloatSpan panel_floats(const Microkernels& kernels, const ConvLayer& layer, int64_t panel) {
  const int64_t stride = layer.header.block_stride();
  if (layer.header.layout == PackedLayout::lanes) return {layer.weights + panel * stride, stride};
  if (layer.header.layout == PackedLayout::bfloat16) {
    return {panel_weights(kernels, layer, panel), bfloat16_panel_floats(layer.header)};
  }
  return {panel_weights(kernels, layer, panel),
          panel_blocks(kernels, layer, panel).size() * stride};
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
  register_panels(kernels, layer, {&band, 1}, panels);
}

void conv_bands(const Microkernels& kernels, const ConvLayer& layer,
                std::span<const ConvBand> bands, Range panels) {
  register_panels(kernels, layer, bands, panels);
}

}  // namespace fastres::cpu

#include "tile_panels.h"

#include <algorithm>
#include <vector>

#include "panels.h"
#include "split_rows.h"

namespace fastres::cpu {
namespace {

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

}  // namespace

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

}  // namespace fastres::cpu

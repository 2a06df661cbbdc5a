#include "panels.h"

#include <algorithm>

#include "../runtime/cache.h"
#include "../runtime/scratch.h"
#include "pack_on_use.h"
#include "plain_weight.h"

namespace fastres::cpu {
namespace {

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

}  // namespace

int64_t panels_per_group(const Microkernels& kernels, const ConvLayer& layer) {
  return (layer.header.group_out_channels() + kernels.panel_channels - 1) / kernels.panel_channels;
}

int64_t nth_panel(const ConvLayer& layer, Range panels, int64_t i) {
  if (i >= panels.size()) return -1;
  const int64_t rotated = i + layer.first_panel;
  return panels.begin + (rotated < panels.size() ? rotated : rotated - panels.size());
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

const float* ready_weights(const Microkernels& kernels, const ConvLayer& layer, int64_t panel,
                           int64_t i, Range channels) {
  if (layer.packing != nullptr) layer.packing->prepare(panel_blocks(kernels, layer, panel));
  if (layer.plain == nullptr) return panel_weights(kernels, layer, panel);
  ThreadScratch& scratch = thread_scratch();
  Scratch& memory = i % 2 == 0 ? scratch.weights : scratch.next_weights;
  return panel_weights(kernels, packed_panel(kernels, layer, panel, channels, memory), panel);
}

ConvTile panel_tile(const Microkernels& kernels, const ConvLayer& layer, ConvTile t, int64_t panel,
                    const float* weights) {
  t.input += panel / panels_per_group(kernels, layer) * layer.header.group_in_channels;
  t.weights = weights;
  select_outputs(t, panel_channels(kernels, layer, {panel, panel + 1}));
  return t;
}

void set_next(const Microkernels& kernels, const ConvLayer& layer, Range panels, int64_t i,
              int64_t later, const Reduction& reduction, ConvTile& t) {
  const bool more = i + later < panels.size();
  const int64_t next = more ? nth_panel(layer, panels, i + later) : layer.next_panel;
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

}  // namespace fastres::cpu

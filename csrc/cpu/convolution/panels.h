// Panels of output channels, the unit of work that threads can share: which channels they have,
// and when their weights are packed and fetched.

#pragma once

#include <cstdint>

#include "conv_layer.h"

namespace fastres::cpu {

// The i-th of `panels` in the order that the layer takes them; -1 after the last.
int64_t nth_panel(const ConvLayer& layer, Range panels, int64_t i);

int64_t panel_count(const Microkernels& kernels, const ConvLayer& layer);
// The output channels of a range of panels.
Range panel_channels(const Microkernels& kernels, const ConvLayer& layer, Range panels);

// The blocks of output channels of an igemm panel, in the packed weight's order.
Range panel_blocks(const Microkernels& kernels, const ConvLayer& layer, int64_t panel);

// Their packed weights.
FloatSpan panel_floats(const Microkernels& kernels, const ConvLayer& layer, int64_t panel);

int64_t panels_per_group(const Microkernels& kernels, const ConvLayer& layer);

// Some input channels of a group.
struct Reduction {
  Range channels;
  bool whole;
};

// All of them.
inline Range all_channels(const ConvLayer& layer) { return {0, layer.header.group_in_channels}; }

// The weights of the i-th panel, packed by then, of these input channels at least; until the next
// panel but one's.
const float* ready_weights(const Microkernels& kernels, const ConvLayer& layer, int64_t panel,
                           int64_t i, Range channels);

// One panel's tile, of the whole reduction.
ConvTile panel_tile(const Microkernels& kernels, const ConvLayer& layer, ConvTile t, int64_t panel,
                    const float* weights);

// Fetched while the i-th panel is computed: what a later one, so many after it, has to be packed
// of, or a share of what comes after all panels, and the later one's weights, unless they are in
// the cache by then.
void set_next(const Microkernels& kernels, const ConvLayer& layer, Range panels, int64_t i,
              int64_t later, const Reduction& reduction, ConvTile& t);

}  // namespace fastres::cpu

// A weight as the user has it, and how it is packed.

#pragma once

#include <cstdint>

#include "../../packed_weight.h"
#include "../microkernels.h"
#include "../runtime/parallel.h"
#include "../split.h"

namespace fastres::cpu {

// [K][C/groups][R][S] or, channels_last, [K][R][S][C/groups].
struct PlainWeight {
  const void* data = nullptr;
  StorageType type = StorageType::float32;
  bool channels_last = false;
  const float* scale = nullptr;  // [K]; null for 1
};

// Blocks of sixteen output channels in the whole packed weight.
int64_t block_count(const PackedHeader& header);

// Where the values of blocks are, of one group, that follow each other: to be fetched.
FloatSpan plain_values(const PackedHeader& header, const PlainWeight& weight, Range blocks);

// The same of some input channels alone.
FloatSpan plain_channels(const PackedHeader& header, const PlainWeight& weight, Range blocks,
                         Range channels);

// Packs blocks of the direct layouts, one after the other from `target` on.
void pack_blocks(const Microkernels& kernels, const PackedHeader& header, const PlainWeight& weight,
                 Range blocks, float* target);

// The same of some input channels of a group, layout igemm: each where it is in the whole block.
void pack_block_channels(const Microkernels& kernels, const PackedHeader& header,
                         const PlainWeight& weight, Range blocks, Range channels, float* target);

// The same of panels of PackedLayout::bfloat16, for tiles that multiply bfloat16 values.
void pack_bfloat16_panels(const Microkernels& kernels, const PackedHeader& header,
                          const PlainWeight& weight, Range panels, Bfloat16* target);

// The same of Winograd's layout: blocks follow each other within each of the sixteen positions, and
// positions are `position_stride` floats apart.
void pack_winograd_blocks(const Microkernels& kernels, const PackedHeader& header,
                          const PlainWeight& weight, Range blocks, float* target,
                          int64_t position_stride);

// Packs the whole weight on all threads.
void pack_payload(const Microkernels& kernels, const PackedHeader& header,
                  const PlainWeight& weight, float* payload);

}  // namespace fastres::cpu

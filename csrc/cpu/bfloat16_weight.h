// A weight that is packed as matrix tiles multiply it with bfloat16 values: half the bytes, and
// nothing to do at a call. PackedLayout::bfloat16 has the order.

#pragma once

#include <optional>

#include "conv_rows.h"
#include "plain_weight.h"
#include "weights.h"

namespace fastres::cpu {

// Packs the whole weight on all threads.
void pack_bfloat16(const Microkernels& kernels, const PackedHeader& header,
                   const PlainWeight& weight, Bfloat16* payload);

// Gives a layer with such a weight, and rows of so many output pixels, a float32 copy in `memory`
// where it is not multiplied on tiles: on other processors, and for inputs of other types.
void widen_weight(const Microkernels& kernels, ConvLayer& layer, int64_t pixels,
                  std::optional<PooledFloats>& memory);

}  // namespace fastres::cpu

// A weight that is packed as matrix tiles multiply it with bfloat16 values: half the bytes, and
// nothing to do at a call. PackedLayout::bfloat16 has the order.

#pragma once

#include <optional>

#include "../runtime/buffer_pool.h"
#include "conv_layer.h"
#include "plain_weight.h"

namespace fastres::cpu {

// Packs the whole weight on all threads, to the same bytes on all processors.
void pack_bfloat16(const Microkernels& kernels, const PackedHeader& header,
                   const PlainWeight& weight, Bfloat16* payload);

// Where a layer with rows of so many output pixels is not multiplied on tiles, on other processors
// and for inputs of other types, gives it a float32 copy of such a weight in `memory`; of `plain`,
// if it has data, it is packed as float32 values later.
void widen_weight(const Microkernels& kernels, ConvLayer& layer, const PlainWeight& plain,
                  int64_t pixels, std::optional<PooledFloats>& memory);

}  // namespace fastres::cpu

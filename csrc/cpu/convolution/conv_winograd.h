// Winograd's F(2x2, 3x3) of a whole batch, its products on matrix tiles.

#pragma once

#include "conv.h"

namespace fastres::cpu {

// Whether a layer of large weights takes less time so than by rows that stay in the cache: matrix
// tiles split each position's weights once for all images. Not a matter of threads, on which bits
// must not depend.
bool batches_winograd(const Microkernels& kernels, const ConvLayer& layer, int64_t batch,
                      Extent out);

// The layout of a layer's weight that is packed for one call on a tensor of `type`: where tiles
// multiply bfloat16 values Winograd's algorithm has nothing to gain. Nor has it on tiles where a
// large weight meets too few pixels for batches_winograd, as its transform is for this call alone:
// directly, 256 channels at 14x14 take 0.92 of the time.
void set_live_layout(ConvLayer& layer, StorageType type, int64_t batch, Extent out);

// The layer's weights are packed, or packed on use.
void run_winograd_batches(const Microkernels& kernels, const Conv& conv);

}  // namespace fastres::cpu

// A whole bottleneck over all threads, depth-first.

#pragma once

#include "bottleneck.h"

namespace fastres::cpu {

// Each thread takes a band of output rows through all convolutions, so that the inner activations
// never leave its level-2 cache. All layers are packed.
void run_depth_first(const Microkernels& kernels, const Bottleneck& block);

}  // namespace fastres::cpu

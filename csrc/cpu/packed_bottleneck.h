// A bottleneck of packed weights: what grouped_bottleneck and bottleneck_chain do alike.

#pragma once

#include <string>

#include "../chain.h"
#include "bottleneck_arguments.h"

namespace fastres::cpu {

// Checks the block and runs it. Messages begin with `op`, and call the tensors packed1, shift1, and
// so on, packed_down and shift_down.
Tensor packed_bottleneck(const Tensor& x, const BottleneckOperands& block, const std::string& act,
                         const char* op);

}  // namespace fastres::cpu

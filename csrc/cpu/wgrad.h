// The gradient of a convolution's weight.

#pragma once

#include "output_gradient.h"

namespace fastres::cpu {

// Writes the elements of grad_weight. The order of all sums depends on the problem and the number
// of threads alone.
void run_wgrad(const Kernels& kernels, TrainingConv conv, OutputGradient gradient,
               const WeightView& grad_weight);

}  // namespace fastres::cpu

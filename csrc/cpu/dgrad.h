// The gradient of a convolution's input, and of the affine that was applied to it.

#pragma once

#include <vector>

#include "output_gradient.h"

namespace fastres::cpu {

// Per channel, g the gradient of the affine's output: sums of g and of g * (x - mean).
struct InputGradientSums {
  Totals grad;
  Totals grad_centred;
};

// Fills grad_x, dense NHWC of x's type.
InputGradientSums run_dgrad(const Kernels& kernels, TrainingConv conv, OutputGradient gradient,
                            Image grad_x);

}  // namespace fastres::cpu

// Both gradients of a convolution from one reading of its tensors.

#pragma once

#include "dgrad.h"
#include "wgrad.h"

namespace fastres::cpu {

// Where input and output have the same rows and the weight's gradient is small: each thread keeps
// sums of its own, and goes through slices of rows. It forms a slice's output gradient once for
// both gradients, and where the data gradient passes through the activation, the activated input
// for the weight gradient comes with it.
bool fuses_backward(const TrainingConv& conv);

// What is wanted of it: input.grad_x without data and grad_weight without data are left out.
InputGradientSums run_fused_backward(const Kernels& kernels, TrainingConv conv,
                                     OutputGradient gradient, InputBackward input,
                                     const WeightView& grad_weight);

}  // namespace fastres::cpu

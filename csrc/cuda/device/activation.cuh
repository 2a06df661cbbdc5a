// Activations and their derivatives. Comparisons, not fmaxf: a NaN has to come through.

#pragma once

#include "../params.h"

namespace fastres::cuda {

__device__ inline float apply_act(float v, Activation act, float slope) {
  switch (act) {
    case Activation::none:
      return v;
    case Activation::relu:
      return v < 0.0F ? 0.0F : v;
    case Activation::relu6:
      return v < 0.0F ? 0.0F : (v > 6.0F ? 6.0F : v);
    case Activation::silu:
      return v / (1.0F + expf(-v));
    case Activation::leaky_relu:
      return v < 0.0F ? v * slope : v;
  }
  return v;
}

// The derivative at `v`, the value before the activation, times `grad`. Zero where the activation
// is flat, whatever `grad` is, as PyTorch's threshold has it.
__device__ inline float act_grad(float grad, float v, Activation act, float slope) {
  switch (act) {
    case Activation::none:
      return grad;
    case Activation::relu:
      return v <= 0.0F ? 0.0F : grad;
    case Activation::relu6:
      return v <= 0.0F || v >= 6.0F ? 0.0F : grad;
    case Activation::silu: {
      const float s = 1.0F / (1.0F + expf(-v));
      return grad * s * (1.0F + v * (1.0F - s));
    }
    case Activation::leaky_relu:
      return v > 0.0F ? grad : grad * slope;
  }
  return grad;
}

}  // namespace fastres::cuda

// Activations on vectors, shared by the epilogues of all convolution kernels.

#pragma once

#include "../microkernels.h"
#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

// exp(x) to 2 ulp: 2^n * e^r with |r| <= ln(2)/2 and a degree-6 polynomial for e^r (the
// coefficients of Cephes' expf). Infinite from n = 128 on, whose exponent bits are infinity's.
inline Vec exp(Vec x) {
  x = at_most(at_least(x, broadcast(-87.3F)), broadcast(89.0F));
  const Vec magic = broadcast(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (x * 1.44269504F + magic) - magic;
  Vec r = x - n * 0.693359375F;
  r = r - n * -2.12194440e-4F;
  Vec p = broadcast(1.9875691500e-4F);
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * (Vec)exponent;
}

inline Vec activate(Vec v, Activation act, float slope) {
  switch (act) {
    case Activation::none:
      return v;
    case Activation::relu:
      return at_least(v, Vec{});
    case Activation::relu6:
      return at_most(at_least(v, Vec{}), broadcast(6.0F));
    case Activation::leaky_relu:
      return v < 0.0F ? v * slope : v;
    case Activation::silu:
      return v / (1.0F + exp(-v));
  }
  return v;
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

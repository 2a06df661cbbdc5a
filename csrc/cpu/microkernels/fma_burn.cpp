// The yardstick: what the fused multiply-add units of this core can do.

#include "kernels.h"
#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

double fma_burn(int64_t iterations) {
  constexpr int kChains = 12;  // latency times throughput, with room, in 16 registers
  Vec chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = broadcast(static_cast<float>(i));
  Vec factor = broadcast(0.999F);
  Vec term = broadcast(1e-3F);
  // The compiler must neither know the values nor unroll across the loop's end.
  asm volatile("" : "+x"(factor), "+x"(term));
  for (int64_t k = 0; k < iterations; ++k) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chains[i] = chains[i] * factor + term;
  }
  Vec sum{};
  for (const Vec& chain : chains) sum += chain;
  asm volatile("" : : "x"(sum));
  return 2.0 * kLanes * kChains * static_cast<double>(iterations);
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

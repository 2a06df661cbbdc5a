// What the library exports for fastres._diagnostics, beside the functions of isa.h.

#pragma once

#include <cstdint>

#include "runtime/isa.h"

namespace fastres::cpu {

// Runs `iterations` rounds of independent fused multiply-adds on the selected instruction set and
// returns the floating-point operations done: timed, one core's peak.
FASTRES_PUBLIC double fma_burn(int64_t iterations);

// What this machine can do, the yardsticks of every benchmark: the best of a few short runs on
// `threads` threads together. Throw std::invalid_argument unless threads is positive.
FASTRES_PUBLIC double fma_peak_gflops(int threads);
// Bytes read and bytes written by a copy far larger than the caches.
FASTRES_PUBLIC double copy_bandwidth_gbs(int threads);

}  // namespace fastres::cpu

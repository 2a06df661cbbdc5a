// What the library exports for fastres._diagnostics, beside the functions of isa.h.

#pragma once

#include <cstdint>

#include "isa.h"

namespace fastres::cpu {

// Runs `iterations` rounds of independent fused multiply-adds on the selected instruction set and
// returns the floating-point operations done: timed, one core's peak.
FASTRES_PUBLIC double fma_burn(int64_t iterations);

}  // namespace fastres::cpu

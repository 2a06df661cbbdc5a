#include "diagnostics.h"

#include "microkernels.h"

namespace fastres::cpu {

double fma_burn(int64_t iterations) { return selected_microkernels().fma_burn(iterations); }

}  // namespace fastres::cpu

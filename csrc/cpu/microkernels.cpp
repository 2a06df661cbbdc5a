// Built once, not per instruction set: picks the table.

#include "microkernels.h"

namespace fastres::cpu {

#if defined(__x86_64__)
namespace avx512 {
const Microkernels& microkernels();
}
namespace avx2 {
const Microkernels& microkernels();
}
#endif
namespace portable {
const Microkernels& microkernels();
}

const Microkernels& microkernels_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return avx512::microkernels();
  if (isa == Isa::avx2) return avx2::microkernels();
#endif
  (void)isa;
  return portable::microkernels();
}

}  // namespace fastres::cpu

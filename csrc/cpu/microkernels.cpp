// Built once, not per instruction set: picks the table.

#include "microkernels.h"

#include "split.h"

namespace fastres::cpu {

#if defined(__x86_64__)
namespace avx512 {
const Microkernels& microkernels();
const SplitKernels& split_kernels();
}  // namespace avx512
namespace avx2 {
const Microkernels& microkernels();
}
#endif
namespace portable {
const Microkernels& microkernels();
}

#if defined(__x86_64__)
namespace {

const Microkernels& amx_microkernels() {
  static const Microkernels kTable = [] {
    Microkernels table = avx512::microkernels();
    table.split = &avx512::split_kernels();
    return table;
  }();
  return kTable;
}

}  // namespace
#endif

const Microkernels& microkernels_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::amx) return amx_microkernels();
  if (isa == Isa::avx512) return avx512::microkernels();
  if (isa == Isa::avx2) return avx2::microkernels();
#endif
  (void)isa;
  return portable::microkernels();
}

}  // namespace fastres::cpu

// Built once, not per instruction set: picks the table.

#include "microkernels.h"

#include "split.h"

namespace fastres::cpu {

#if defined(__x86_64__)
namespace avx512 {
const Microkernels& microkernels();
template <int kParts>
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

template <int kParts>
const Microkernels& amx_microkernels() {
  static const Microkernels kTable = [] {
    Microkernels table = avx512::microkernels();
    table.split = &avx512::split_kernels<kParts>();
    return table;
  }();
  return kTable;
}

}  // namespace
#endif

const Microkernels& microkernels_for(Isa isa, StorageType type) {
#if defined(__x86_64__)
  if (isa == Isa::amx) {
    return type == StorageType::bfloat16 ? amx_microkernels<kBfloat16Parts>()
                                         : amx_microkernels<kFloat32Parts>();
  }
  if (isa == Isa::avx512) return avx512::microkernels();
  if (isa == Isa::avx2) return avx2::microkernels();
#endif
  (void)isa, (void)type;
  return portable::microkernels();
}

}  // namespace fastres::cpu

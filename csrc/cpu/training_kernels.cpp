// Built once, not per instruction set: picks the table.

#include "training_kernels.h"

namespace fastres::cpu {

#if defined(__x86_64__)
namespace avx512 {
const TrainingKernels& training_kernels();
}
namespace avx2 {
const TrainingKernels& training_kernels();
}
#endif
namespace portable {
const TrainingKernels& training_kernels();
}

const TrainingKernels& training_kernels_for(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return avx512::training_kernels();
  if (isa == Isa::avx2) return avx2::training_kernels();
#endif
  (void)isa;
  return portable::training_kernels();
}

}  // namespace fastres::cpu

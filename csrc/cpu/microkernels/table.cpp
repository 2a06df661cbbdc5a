// This instruction set's row of the table that microkernels_for() looks up.

#include "kernels.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

const Microkernels& microkernels() {
  static const Microkernels kTable{
      kIgemmPanelChannels,
      kIgemmWidePanelChannels,
      kIgemmWidePanelPixels,
      igemm,
      lanes,
      grouped,
      arrange_grouped,
      dot,
      winograd_input,
      winograd_output,
      pack_direct,
      pack_winograd,
      widen,
      narrow,
      max_pool,
      hash,
      fma_burn,
  };
  return kTable;
}

#if defined(__AVX512BW__)
const SplitKernels& split_kernels() {
  static const SplitKernels kTable{split_pixels, split_weights, split_columns, split_transposed,
                                   split_igemm};
  return kTable;
}
#endif

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

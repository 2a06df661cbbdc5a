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
template <int kParts>
const SplitKernels& split_kernels() {
  static const SplitKernels kTable{kParts,
                                   split_pixels<kParts>,
                                   split_weights<kParts>,
                                   kParts == kBfloat16Parts ? round_weight_rows : nullptr,
                                   split_columns<kParts>,
                                   split_transposed<kParts>,
                                   split_igemm<kParts>};
  return kTable;
}
template const SplitKernels& split_kernels<kFloat32Parts>();
template const SplitKernels& split_kernels<kBfloat16Parts>();
#endif

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

// This instruction set's row of the table that training_kernels_for() looks up.

#include "training.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

const TrainingKernels& training_kernels() {
  static const TrainingKernels kTable{
      affine_act,  affine_act_backward, stats_gradient, moments,         wgrad,
      wgrad_lanes, winograd_gradient,   winograd_taps,  max_pool_places, max_pool_gradient};
  return kTable;
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

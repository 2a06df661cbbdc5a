// grouped_wgrad on bf16.

#include "grouped_wgrad.cuh"

using fastres::cuda::bf16;

FASTRES_GROUPED_WGRAD_WIDTHS(bf16, bf16)

// grouped_bottleneck on bf16.

#include "grouped_bottleneck.cuh"

using fastres::cuda::bf16;

FASTRES_GROUPED_BOTTLENECK_WIDTHS(bf16, bf16)

// grouped_conv on bf16.

#include "grouped_conv.cuh"

using fastres::cuda::bf16;

FASTRES_GROUPED_CONV_WIDTHS(bf16, bf16)

// grouped_conv on f16.

#include "grouped_conv.cuh"

using fastres::cuda::f16;

FASTRES_GROUPED_CONV_WIDTHS(f16, f16)

// grouped_bottleneck on f16.

#include "grouped_bottleneck.cuh"

using fastres::cuda::f16;

FASTRES_GROUPED_BOTTLENECK_WIDTHS(f16, f16)

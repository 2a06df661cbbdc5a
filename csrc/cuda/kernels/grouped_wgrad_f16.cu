// grouped_wgrad on f16.

#include "grouped_wgrad.cuh"

using fastres::cuda::f16;

FASTRES_GROUPED_WGRAD_WIDTHS(f16, f16)

// grouped_wgrad on f32.

#include "grouped_wgrad.cuh"

FASTRES_GROUPED_WGRAD_WIDTHS(f32, float)

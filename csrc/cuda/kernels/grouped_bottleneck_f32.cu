// grouped_bottleneck on f32.

#include "grouped_bottleneck.cuh"

FASTRES_GROUPED_BOTTLENECK_WIDTHS(f32, float)

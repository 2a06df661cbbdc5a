// grouped_conv on f32.

#include "grouped_conv.cuh"

FASTRES_GROUPED_CONV_WIDTHS(f32, float)

// Convolution of few pixels with a weight that is not packed.
//
// The usual kernels keep sixteen output channels side by side in a vector, for which a weight has
// to be transposed. Where there are fewer pixels than output channels it costs less to transpose
// the pixels: the lanes of a vector are pixels then, and each weight, read where it is, is
// broadcast.

#pragma once

#include "conv.h"

namespace fastres::cpu {

// Whether this is the faster way, and possible: a dense convolution of a plain weight, float32.
bool prefers_pixel_lanes(const Conv& conv);

void run_pixel_lanes(const Microkernels& kernels, const Conv& conv);

}  // namespace fastres::cpu

// A dense 3x3 with stride 1 over a band of rows by Winograd's F(2x2, 3x3): 16 multiplications where
// the direct convolution has 36, with rounding errors of the same size.

#pragma once

#include "conv_rows.h"

namespace fastres::cpu {

void winograd_rows(const Microkernels& kernels, const ConvLayer& layer, ConvBand band,
                   Range panels);

}  // namespace fastres::cpu

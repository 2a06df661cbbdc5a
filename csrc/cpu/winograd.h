// A dense 3x3 with stride 1 over a band of rows by Winograd's F(2x2, 3x3): 16 multiplications where
// the direct convolution has 36, with rounding errors of the same size.

#pragma once

#include "conv_rows.h"
#include "plain_weight.h"

namespace fastres::cpu {

// The layer's weights are packed, or `plain`, of which each panel is transformed right before use;
// `plain.data` is null for none.
void winograd_rows(const Microkernels& kernels, const ConvLayer& layer, const PlainWeight& plain,
                   ConvBand band, Range panels);

// Whether winograd_rows takes a band of this size at once, using each panel once.
bool winograd_in_one_chunk(const Microkernels& kernels, const ConvLayer& layer, int64_t rows,
                           int64_t pixels);

}  // namespace fastres::cpu

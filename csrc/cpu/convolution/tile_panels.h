// A band of a dense convolution, or of wide groups, on matrix tiles.

#pragma once

#include "conv_layer.h"

namespace fastres::cpu {

// What conv_rows() does where tiles are preferred: some groups after the others.
void tile_panels(const Microkernels& kernels, ConvLayer layer, const ConvBand& band, Range panels);

}  // namespace fastres::cpu

// Groups of 4, 8 or 16 channels on matrix tiles of bfloat16.

#pragma once

#include "conv_layer.h"
#include "split_rows.h"

namespace fastres::cpu {

// Whether a layer is computed so.
inline bool multiplies_narrow_groups(const Microkernels& kernels, const PackedHeader& header) {
  return multiplies_bfloat16(kernels) && has_narrow_groups(header);
}

// What conv_rows() does then: panels are sixteen channels, of which every two share their input.
void narrow_tile_panels(const Microkernels& kernels, const ConvLayer& layer, const ConvBand& band,
                        Range panels);

}  // namespace fastres::cpu

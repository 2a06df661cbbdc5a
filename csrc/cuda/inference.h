// What the operators of inference share: a packed weight and its shift.

#pragma once

#include <string>

#include "tensors.h"

namespace fastres::cuda {

// Checks the layer's constants, whose names end in `suffix`, and fills in the output's sizes.
inline void layer_arguments(Operands& operands, const Tensor& packed, const Tensor& shift,
                            const char* op, const std::string& suffix, ConvGeometry& g,
                            ConvBnActArguments& a) {
  const std::string packed_name = "packed" + suffix, shift_name = "shift" + suffix;
  check(shift.dim() == 1 && shift.size(0) > 0, op, ": ", shift_name, " must have shape [K], got ",
        shape_string(shift));
  g.out_channels = shift.size(0);
  a.packed = packed_weight(operands, packed, g, op, packed_name.c_str());
  a.shift = operands.vector(shift, g.out_channels, shift_name.c_str());
  set_output_size(g, op);
}

}  // namespace fastres::cuda

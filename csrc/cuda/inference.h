// What the operators of inference share: a layer's constants.

#pragma once

#include <optional>
#include <string>

#include "tensors.h"

namespace fastres::cuda {

// Both check a layer's constants, whose names end in `suffix`, and fill in the output's sizes.

// A packed weight and its shift.
inline void packed_layer(Operands& operands, const Tensor& packed, const Tensor& shift,
                         const char* op, const std::string& suffix, ConvGeometry& g,
                         ConvBnActArguments& a) {
  const std::string packed_name = "packed" + suffix, shift_name = "shift" + suffix;
  check(shift.dim() == 1 && shift.size(0) > 0, op, ": ", shift_name, " must have shape [K], got ",
        ShapeOf{shift});
  g.out_channels = shift.size(0);
  a.packed = packed_weight(operands, packed, g, op, packed_name.c_str());
  a.shift = operands.vector(shift, g.out_channels, shift_name.c_str());
  set_output_size(g, op);
}

// A weight as the user has it, its scale and its shift. `algorithm` is checked and not followed:
// tensor cores convolve 3x3 directly.
inline void live_layer(Operands& operands, const Tensor& weight, const std::optional<Tensor>& scale,
                       const Tensor& shift, const std::string& algorithm, const char* op,
                       const std::string& suffix, ConvGeometry& g, ConvBnActArguments& a) {
  const std::string name = "weight" + suffix;
  operands.check_device(weight, name.c_str());
  check_weight_to_pack(weight, g.groups, algorithm, op, name.c_str());
  check(weight.size(1) * g.groups == g.in_channels && weight.size(2) == g.kernel.h &&
            weight.size(3) == g.kernel.w,
        op, ": ", name, " must have shape [K, ", g.in_channels, "/", g.groups, ", ", g.kernel.h,
        ", ", g.kernel.w, "], got ", ShapeOf{weight});
  PackedHeader header;
  if (algorithm == "winograd") header.layout = PackedLayout::winograd;
  check_algorithm(header, g.stride, g.dilation, op, name.c_str());
  g.out_channels = weight.size(0);
  a.weight = weight_tensor(weight);
  a.scale = operands.vector(scale, g.out_channels, ("scale" + suffix).c_str());
  a.shift = operands.vector(shift, g.out_channels, ("shift" + suffix).c_str());
  set_output_size(g, op);
}

}  // namespace fastres::cuda

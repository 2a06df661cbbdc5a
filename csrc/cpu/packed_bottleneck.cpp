#include "packed_bottleneck.h"

#include <optional>

namespace fastres::cpu {
namespace {

constexpr const char* kPackedNames[] = {"packed1", "packed2", "packed3", "packed_down"};
constexpr const char* kShiftNames[] = {"shift1", "shift2", "shift3", "shift_down"};

CheckedLayer layer_of(const BottleneckOperands& block, size_t i, const char* op) {
  const Tensor& packed = block.packed[i];
  check_cpu(packed, op, kPackedNames[i]);
  CheckedLayer checked;
  checked.layer.header = packed_header(packed, op, kPackedNames[i]);
  checked.layer.weights = packed_payload(packed.const_data_ptr());
  checked.kept.push_back(packed);
  set_shift(checked, block.shift[i], op, kShiftNames[i]);
  return checked;
}

}  // namespace

Tensor packed_bottleneck(const Tensor& x, const BottleneckOperands& block, const std::string& act,
                         const char* op) {
  const CheckedLayer reduce = layer_of(block, 0, op);
  const CheckedLayer spatial = layer_of(block, 1, op);
  const CheckedLayer expand = layer_of(block, 2, op);
  std::optional<CheckedLayer> down;
  if (block.packed.size() == 4) down = layer_of(block, 3, op);
  return bottleneck({x, reduce, spatial, expand, down, block.stride, block.dilation, act},
                    block.groups,
                    {kPackedNames[0], kPackedNames[1], kPackedNames[2], kPackedNames[3]}, op);
}

}  // namespace fastres::cpu

// bottleneck_chain on the CPU: grouped_bottlenecks one after the other, called once for all.

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "../chain.h"
#include "bottleneck_arguments.h"
#include "runtime/allocate.h"

namespace fastres::cpu {
namespace {

CheckedLayer layer_at(const ChainConv& conv, const char* packed, const float* shift, const char* op,
                      const char* name) {
  CheckedLayer checked;
  const char* data = packed + conv.packed;
  checked.layer.header = packed_header(data, conv.size, op, name);
  check(checked.layer.header.out_channels == conv.channels, op, ": ", name, " has ",
        checked.layer.header.out_channels, " output channels, got ", conv.channels, " in channels");
  checked.layer.weights = packed_payload(data);
  checked.layer.shift = shift + conv.shift;
  return checked;
}

Tensor bottleneck_chain(const Tensor& x, const Tensor& packed, const Tensor& shift,
                        const std::vector<int64_t>& sizes, const std::vector<int64_t>& channels,
                        const std::vector<int64_t>& convs, const std::vector<int64_t>& stride,
                        const std::vector<int64_t>& dilation, const std::vector<int64_t>& groups,
                        const std::string& act) {
  check_cpu(packed, kChainOp, "packed");
  check_cpu(shift, kChainOp, "shift");
  const Tensor shifts = as_contiguous(shift);
  const auto* weights = static_cast<const char*>(packed.const_data_ptr());
  std::vector<CheckedBottleneck> blocks;
  const auto add = [&](size_t, const ChainBlock<ChainConv>& block) {
    const char* op = block.name.c_str();
    const auto layer = [&](size_t i, const char* name) {
      return layer_at(block.convs[i], weights, shifts.const_data_ptr<float>(), op, name);
    };
    const CheckedLayer reduce = layer(0, kConvNames.reduce);
    const CheckedLayer spatial = layer(1, kConvNames.spatial);
    const CheckedLayer expand = layer(2, kConvNames.expand);
    std::optional<CheckedLayer> down;
    if (block.convs.size() == 4) down = layer(3, kConvNames.down);
    blocks.push_back(checked_bottleneck({next_input(x, blocks, op), reduce, spatial, expand, down,
                                         block.stride, block.dilation, act},
                                        block.groups, kConvNames, op));
  };
  for_each_block(kChainOp,
                 ChainArguments{packed, shift, sizes, channels, {convs, stride, dilation, groups}},
                 add);
  return run_bottlenecks(x, blocks);
}

Tensor join_packed(const std::vector<Tensor>& packed) {
  constexpr const char* kOp = "join_packed";
  check(!packed.empty(), kOp, ": packed must have at least one element, got none");
  int64_t bytes = 0;
  for (const Tensor& one : packed) {
    check_cpu(one, kOp, "packed");
    check_packed_tensor(one, kOp, "packed");
    bytes += joined_bytes(one.numel());
  }
  Tensor joined = empty_packed(bytes, packed.front());
  auto* target = static_cast<char*>(const_cast<void*>(joined.const_data_ptr()));
  for (const Tensor& one : packed) {
    const int64_t size = one.numel(), room = joined_bytes(size);
    std::memcpy(target, one.const_data_ptr(), static_cast<size_t>(size));
    std::memset(target + size, 0, static_cast<size_t>(room - size));
    target += room;
  }
  return joined;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("bottleneck_chain", TORCH_BOX(&fastres::cpu::bottleneck_chain));
  m.impl("join_packed", TORCH_BOX(&fastres::cpu::join_packed));
}

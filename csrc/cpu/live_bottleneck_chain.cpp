// live_bottleneck_chain on the CPU: live_bottlenecks one after the other, called once for all.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "../chain.h"
#include "bottleneck_arguments.h"

namespace fastres::cpu {
namespace {

Tensor live_bottleneck_chain(const Tensor& x, const std::vector<Tensor>& weights,
                             const Tensor& scale, const Tensor& shift,
                             const std::vector<std::string>& algorithms,
                             const std::vector<int64_t>& convs, const std::vector<int64_t>& stride,
                             const std::vector<int64_t>& dilation,
                             const std::vector<int64_t>& groups, const std::string& act) {
  for (const Tensor& weight : weights) check_cpu(weight, kLiveChainOp, "weights");
  check_cpu(scale, kLiveChainOp, "scale");
  check_cpu(shift, kLiveChainOp, "shift");
  const Tensor scales = as_contiguous(scale), shifts = as_contiguous(shift);
  std::vector<CheckedBottleneck> blocks;
  const auto add = [&](size_t i, const ChainBlock<LiveChainConv>& block) {
    const char* op = block.name.c_str();
    const auto layer = [&](size_t conv, const char* name, int64_t group_count,
                           const std::string& algorithm) {
      const LiveChainConv& one = block.convs[conv];
      CheckedLayer checked =
          plain_layer(checked_weight(*one.weight, std::nullopt, group_count, algorithm, op, name));
      checked.layer.plain.scale = scales.const_data_ptr<float>() + one.first;
      checked.layer.shift = shifts.const_data_ptr<float>() + one.first;
      return checked;
    };
    const CheckedLayer reduce = layer(0, kConvNames.reduce, 1, "direct");
    const CheckedLayer spatial = layer(1, kConvNames.spatial, block.groups, algorithms[i]);
    const CheckedLayer expand = layer(2, kConvNames.expand, 1, "direct");
    std::optional<CheckedLayer> down;
    if (block.convs.size() == 4) down = layer(3, kConvNames.down, 1, "direct");
    blocks.push_back(checked_bottleneck({next_input(x, blocks, op), reduce, spatial, expand, down,
                                         block.stride, block.dilation, act},
                                        block.groups, kConvNames, op));
  };
  for_each_block(
      kLiveChainOp,
      LiveChainArguments{weights, scale, shift, algorithms, {convs, stride, dilation, groups}},
      add);
  return run_bottlenecks(x, blocks);
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("live_bottleneck_chain", TORCH_BOX(&fastres::cpu::live_bottleneck_chain));
}

// Operators made of others, on devices without kernels of their own for them: a program without
// Python has them from here. With Python they are those of fastres/composed.py, whose errors are
// ValueErrors.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "chain.h"
#include "checks.h"

namespace fastres {
namespace {

using Ints = std::vector<int64_t>;

// Calls an operator's overload that returns one tensor, through the dispatcher.
template <class... Arguments>
Tensor call_overload(const char* op, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}
template <class... Arguments>
Tensor call(const char* op, const Arguments&... arguments) {
  return call_overload(op, "", arguments...);
}

Tensor max_pool(const Tensor& x, const Ints& kernel_size, const Ints& stride, const Ints& padding) {
  check_input(x, "max_pool");
  const Tensor y = call("aten::max_pool2d", x, kernel_size, stride, padding, Ints{1, 1}, false);
  return torch::stable::contiguous(y, torch::headeronly::MemoryFormat::ChannelsLast);
}

Tensor conv_max_pool(const Tensor& x, const Tensor& packed, const Tensor& shift,
                     const Ints& kernel_size, const Ints& stride, const Ints& padding,
                     const Ints& dilation, int64_t groups, const std::string& act, double act_slope,
                     const Ints& pool_size, const Ints& pool_stride, const Ints& pool_padding) {
  const std::optional<Tensor> no_residual;
  const Tensor y = call("fastres::conv_bn_act", x, packed, shift, no_residual, kernel_size, stride,
                        padding, dilation, groups, act, act_slope);
  return call("fastres::max_pool", y, pool_size, pool_stride, pool_padding);
}

Tensor live_conv_max_pool(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
                          const Tensor& shift, const Ints& stride, const Ints& padding,
                          const Ints& dilation, int64_t groups, const std::string& act,
                          double act_slope, const Ints& pool_size, const Ints& pool_stride,
                          const Ints& pool_padding) {
  const std::optional<Tensor> no_residual;
  const Tensor y = call("fastres::live_conv_bn_act", x, weight, scale, shift, no_residual, stride,
                        padding, dilation, groups, std::string("direct"), act, act_slope);
  return call("fastres::max_pool", y, pool_size, pool_stride, pool_padding);
}

Tensor avg_pool_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_input(x, "avg_pool_linear");
  const std::optional<ScalarType> same_type;
  const std::optional<Ints> pixels = Ints{2, 3};
  return call("aten::linear", call_overload("aten::mean", "dim", x, pixels, false, same_type),
              weight, bias);
}

// Some values of one dimension.
Tensor part(const Tensor& values, int64_t first, int64_t count) {
  Tensor all = values;  // narrow takes it by reference
  return torch::stable::narrow(all, 0, first, count);
}

Tensor bottleneck_chain(const Tensor& x, const Tensor& packed, const Tensor& shift,
                        const Ints& sizes, const Ints& channels, const Ints& convs,
                        const Ints& stride, const Ints& dilation, const Ints& groups,
                        const std::string& act) {
  Tensor y = x;
  const auto run = [&](size_t, const ChainBlock<ChainConv>& block) {
    std::array<std::optional<Tensor>, 4> weights, shifts;
    for (size_t i = 0; i < block.convs.size(); ++i) {
      const ChainConv& conv = block.convs[i];
      weights[i] = part(packed, conv.packed, conv.size);
      shifts[i] = part(shift, conv.shift, conv.channels);
    }
    y = call("fastres::grouped_bottleneck", y, *weights[0], *shifts[0], *weights[1], *shifts[1],
             *weights[2], *shifts[2], weights[3], shifts[3], block.stride, block.dilation,
             block.groups, act);
  };
  for_each_block(kChainOp,
                 ChainArguments{packed, shift, sizes, channels, {convs, stride, dilation, groups}},
                 run);
  return y;
}

Tensor live_bottleneck_chain(const Tensor& x, const std::vector<Tensor>& weights,
                             const Tensor& scale, const Tensor& shift,
                             const std::vector<std::string>& algorithms, const Ints& convs,
                             const Ints& stride, const Ints& dilation, const Ints& groups,
                             const std::string& act) {
  Tensor y = x;
  const auto run = [&](size_t i, const ChainBlock<LiveChainConv>& block) {
    std::array<std::optional<Tensor>, 4> weight, scales, shifts;
    for (size_t c = 0; c < block.convs.size(); ++c) {
      const LiveChainConv& conv = block.convs[c];
      weight[c] = *conv.weight;
      scales[c] = part(scale, conv.first, conv.channels);
      shifts[c] = part(shift, conv.first, conv.channels);
    }
    y = call("fastres::live_bottleneck", y, *weight[0], scales[0], *shifts[0], *weight[1],
             scales[1], *shifts[1], *weight[2], scales[2], *shifts[2], weight[3], scales[3],
             shifts[3], block.stride, block.dilation, block.groups, algorithms[i], act);
  };
  for_each_block(
      kLiveChainOp,
      LiveChainArguments{weights, scale, shift, algorithms, {convs, stride, dilation, groups}},
      run);
  return y;
}

}  // namespace
}  // namespace fastres

STABLE_TORCH_LIBRARY_IMPL(fastres, CompositeExplicitAutograd, m) {
  m.impl("max_pool", TORCH_BOX(&fastres::max_pool));
  m.impl("conv_max_pool", TORCH_BOX(&fastres::conv_max_pool));
  m.impl("live_conv_max_pool", TORCH_BOX(&fastres::live_conv_max_pool));
  m.impl("avg_pool_linear", TORCH_BOX(&fastres::avg_pool_linear));
  m.impl("bottleneck_chain", TORCH_BOX(&fastres::bottleneck_chain));
  m.impl("live_bottleneck_chain", TORCH_BOX(&fastres::live_bottleneck_chain));
}

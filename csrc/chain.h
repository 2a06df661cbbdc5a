// The arguments of bottleneck_chain, taken apart block by block.

#pragma once

#include <span>
#include <string>
#include <vector>

#include "checks.h"

namespace fastres {

inline constexpr const char* kChainOp = "bottleneck_chain";

struct ChainArguments {
  const std::vector<Tensor>& packed;
  const std::vector<Tensor>& shift;
  const std::vector<int64_t>& convs;
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& dilation;
  const std::vector<int64_t>& groups;
};

struct BottleneckOperands {
  // Of conv1, conv2, conv3 and perhaps the shortcut's convolution.
  std::span<const Tensor> packed, shift;
  std::vector<int64_t> stride, dilation;
  int64_t groups;
};

inline void check_chain(const ChainArguments& a) {
  check(!a.convs.empty(), kChainOp, ": convs must have at least one element, got none");
  size_t all = 0;
  for (const int64_t count : a.convs) {
    check(count == 3 || count == 4, kChainOp, ": convs must be 3 or 4 of each block, got ", count);
    all += static_cast<size_t>(count);
  }
  const auto check_count = [](size_t count, size_t expected, const char* name) {
    check(count == expected, kChainOp, ": ", name, " must have ", expected, " elements, got ",
          count);
  };
  check_count(a.packed.size(), all, "packed");
  check_count(a.shift.size(), all, "shift");
  check_count(a.stride.size(), 2 * a.convs.size(), "stride");
  check_count(a.dilation.size(), 2 * a.convs.size(), "dilation");
  check_count(a.groups.size(), a.convs.size(), "groups");
}

// Calls run(input, block, name) for each block with what the one before returned; messages of the
// block begin with its name.
template <class Run>
Tensor run_chain(const Tensor& x, const ChainArguments& a, const Run& run) {
  check_chain(a);
  std::span<const Tensor> packed(a.packed), shift(a.shift);
  Tensor y = x;
  for (size_t i = 0; i < a.convs.size(); ++i) {
    const auto count = static_cast<size_t>(a.convs[i]);
    const BottleneckOperands block{packed.first(count),
                                   shift.first(count),
                                   {a.stride[2 * i], a.stride[2 * i + 1]},
                                   {a.dilation[2 * i], a.dilation[2 * i + 1]},
                                   a.groups[i]};
    y = run(y, block, std::string(kChainOp) + ": block " + std::to_string(i));
    packed = packed.subspan(count);
    shift = shift.subspan(count);
  }
  return y;
}

}  // namespace fastres

// bottleneck_chain on the CPU: grouped_bottlenecks one after the other, called once for all.

#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "../chain.h"
#include "packed_bottleneck.h"

namespace fastres::cpu {
namespace {

Tensor bottleneck_chain(const Tensor& x, const std::vector<Tensor>& packed,
                        const std::vector<Tensor>& shift, const std::vector<int64_t>& convs,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& dilation,
                        const std::vector<int64_t>& groups, const std::string& act) {
  const auto run = [&](const Tensor& input, const BottleneckOperands& block,
                       const std::string& name) {
    return packed_bottleneck(input, block, act, name.c_str());
  };
  return run_chain(x, {packed, shift, convs, stride, dilation, groups}, run);
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("bottleneck_chain", TORCH_BOX(&fastres::cpu::bottleneck_chain));
}

// conv_bn_act on the CPU: act(conv(x) + shift + residual).

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "conv_arguments.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "conv_bn_act";

Tensor conv_bn_act(const Tensor& x, const Tensor& packed, const Tensor& shift,
                   const std::optional<Tensor>& residual, const std::vector<int64_t>& kernel_size,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, int64_t groups, const std::string& act,
                   double act_slope) {
  check_cpu(packed, kOp, "packed");
  const PackedHeader header = packed_header(packed, kOp, "packed");
  return convolve({x, shift, residual, stride, padding, dilation, groups, act, act_slope},
                  {header,
                   positive_pair(kernel_size, kOp, "kernel_size"),
                   packed_payload(packed.const_data_ptr()),
                   {},
                   "packed"},
                  kOp);
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("conv_bn_act", TORCH_BOX(&fastres::cpu::conv_bn_act));
}

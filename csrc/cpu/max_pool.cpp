// max_pool on the CPU: a row of the output at a time.

#include <torch/csrc/stable/library.h>

#include <vector>

#include "convolution/pooling.h"
#include "convolution/tensor_image.h"
#include "runtime/allocate.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "max_pool";

Tensor max_pool(const Tensor& x, const std::vector<int64_t>& kernel_size,
                const std::vector<int64_t>& stride, const std::vector<int64_t>& padding) {
  check_input(x, kOp);
  const Extent in{x.size(2), x.size(3)};
  const PoolWindow window =
      pool_window(kernel_size, stride, padding, in, kOp, {"x", "kernel_size", "stride", "padding"});
  Tensor y = empty_nhwc(x.size(0), x.size(1), pooled_size(window, in), x.scalar_type(), x);
  run_max_pool(selected_microkernels(), image_of(x), image_of(y), window);
  return y;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("max_pool", TORCH_BOX(&fastres::cpu::max_pool));
}

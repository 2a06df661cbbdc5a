// max_pool on the CPU: a row of the output at a time.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "allocate.h"
#include "parallel.h"
#include "pooling.h"
#include "scratch.h"
#include "tensor_image.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "max_pool";

class Pooling {
 public:
  Pooling(const Image& x, const Image& y, const PoolWindow& window)
      : kernels_(selected_microkernels()), x_(x), y_(y), window_(window) {}

  void run() const {
    const int64_t rows = y_.batch * y_.height;
    const int64_t parts = std::clamp<int64_t>(rows, 1, thread_count());
    parallel_parts(parts, [&](int64_t part) {
      const Range share = even_range(rows, parts, part);
      for (int64_t row = share.begin; row < share.end; ++row) {
        run_row(row / y_.height, row % y_.height);
      }
    });
  }

 private:
  void run_row(int64_t n, int64_t h) const {
    const Range rows = window_.input_rows(h, x_.height);
    pool_row(kernels_, window_, input_rows(n, rows), rows.size(), x_.width, y_, n, h);
  }

  Band input_rows(int64_t n, Range rows) const {
    if (x_.is_float32_nhwc()) {
      return {reinterpret_cast<float*>(x_.at(n, rows.begin, 0)), x_.stride_h, x_.stride_w};
    }
    return load_band(kernels_, x_, {n, rows.begin, rows.size(), 0, 0},
                     thread_scratch().input.floats(rows.size() * x_.width * x_.channels));
  }

  const Microkernels& kernels_;
  const Image x_, y_;
  const PoolWindow window_;
};

Tensor max_pool(const Tensor& x, const std::vector<int64_t>& kernel_size,
                const std::vector<int64_t>& stride, const std::vector<int64_t>& padding) {
  check_input(x, kOp);
  const Extent in{x.size(2), x.size(3)};
  const PoolWindow window =
      pool_window(kernel_size, stride, padding, in, kOp, {"x", "kernel_size", "stride", "padding"});
  Tensor y = empty_nhwc(x.size(0), x.size(1), pooled_size(window, in), x.scalar_type(), x);
  if (x.size(0) > 0) Pooling(image_of(x), image_of(y), window).run();
  return y;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("max_pool", TORCH_BOX(&fastres::cpu::max_pool));
}

// max_pool on the CPU: a row of the output at a time.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "allocate.h"
#include "parallel.h"
#include "scratch.h"
#include "tensor_image.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "max_pool";

struct Window {
  Extent kernel, stride, padding;
};

class Pooling {
 public:
  Pooling(const Image& x, const Image& y, const Window& window)
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
    const int64_t top = h * window_.stride.h - window_.padding.h;
    const int64_t first = std::max<int64_t>(top, 0);
    const int64_t rows = std::min(top + window_.kernel.h, x_.height) - first;
    const bool direct_output = y_.type == StorageType::float32;
    const Band input = input_rows(n, first, rows);
    PoolRow row{};
    row.input = input.data;
    row.row_stride = input.row_stride;
    row.pixel_stride = input.pixel_stride;
    row.rows = rows;
    row.width = x_.width;
    row.kernel_w = window_.kernel.w;
    row.stride_w = window_.stride.w;
    row.padding_w = window_.padding.w;
    row.channels = y_.channels;
    row.output = direct_output ? reinterpret_cast<float*>(y_.at(n, h, 0))
                               : thread_scratch().output.floats(y_.width * y_.channels);
    row.pixels = y_.width;
    kernels_.max_pool(row);
    if (!direct_output) {
      store_band(kernels_, {row.output, y_.width * y_.channels, y_.channels}, y_, n, h, 1, 0,
                 y_.channels);
    }
  }

  Band input_rows(int64_t n, int64_t first, int64_t rows) const {
    if (x_.is_float32_nhwc()) {
      return {reinterpret_cast<float*>(x_.at(n, first, 0)), x_.stride_h, x_.stride_w};
    }
    return load_band(kernels_, x_, {n, first, rows, 0, 0},
                     thread_scratch().input.floats(rows * x_.width * x_.channels));
  }

  const Microkernels& kernels_;
  const Image x_, y_;
  const Window window_;
};

int64_t output_size(int64_t in, int64_t kernel, int64_t stride, int64_t padding) {
  return (in + 2 * padding - kernel) / stride + 1;
}

Tensor max_pool(const Tensor& x, const std::vector<int64_t>& kernel_size,
                const std::vector<int64_t>& stride, const std::vector<int64_t>& padding) {
  check_input(x, kOp);
  Window window;
  window.kernel = positive_pair(kernel_size, kOp, "kernel_size");
  window.stride = positive_pair(stride, kOp, "stride");
  const Extent kernel = window.kernel;
  check(padding.size() == 2, kOp, ": padding must be 2 ints, got ", padding.size(), " values");
  check(padding[0] >= 0 && padding[1] >= 0 && 2 * padding[0] <= kernel.h &&
            2 * padding[1] <= kernel.w,
        kOp, ": padding must be 2 ints from 0 to half of kernel_size, got ", padding[0], ", ",
        padding[1]);
  window.padding = {padding[0], padding[1]};
  const Extent in{x.size(2), x.size(3)};
  check(in.h + 2 * padding[0] >= kernel.h && in.w + 2 * padding[1] >= kernel.w, kOp,
        ": x must be as large as kernel_size, got shape ", shape_string(x));
  const Extent out{output_size(in.h, kernel.h, window.stride.h, padding[0]),
                   output_size(in.w, kernel.w, window.stride.w, padding[1])};
  Tensor y = empty_nhwc(x.size(0), x.size(1), out, x.scalar_type(), x);
  if (x.size(0) > 0) Pooling(image_of(x), image_of(y), window).run();
  return y;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("max_pool", TORCH_BOX(&fastres::cpu::max_pool));
}

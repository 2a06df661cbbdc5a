#include "pooling.h"

#include "../runtime/scratch.h"

namespace fastres::cpu {

PoolWindow pool_window(const std::vector<int64_t>& size, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& padding, Extent in, const char* op,
                       const PoolNames& names) {
  PoolWindow window;
  window.kernel = positive_pair(size, op, names.size);
  window.stride = positive_pair(stride, op, names.stride);
  const Extent kernel = window.kernel;
  check(in.h > 0 && in.w > 0, op, ": ", names.pooled, " must have pixels, got ", in.h, " x ", in.w);
  check(padding.size() == 2, op, ": ", names.padding, " must be 2 ints, got ", padding.size(),
        " values");
  check(padding[0] >= 0 && padding[1] >= 0 && padding[0] <= kernel.h / 2 &&
            padding[1] <= kernel.w / 2,
        op, ": ", names.padding, " must be 2 ints from 0 to half of ", names.size, ", got ",
        padding[0], ", ", padding[1]);
  window.padding = {padding[0], padding[1]};
  check(in.h + 2 * padding[0] >= kernel.h && in.w + 2 * padding[1] >= kernel.w, op, ": ",
        names.pooled, " must be as large as ", names.size, ", got ", in.h, " x ", in.w);
  return window;
}

Extent pooled_size(const PoolWindow& window, Extent in) {
  const auto size = [](int64_t in, int64_t kernel, int64_t stride, int64_t padding) {
    return (in + 2 * padding - kernel) / stride + 1;
  };
  return {size(in.h, window.kernel.h, window.stride.h, window.padding.h),
          size(in.w, window.kernel.w, window.stride.w, window.padding.w)};
}

PoolRow window_row(const PoolWindow& window, const Band& input, int64_t rows, int64_t width,
                   int64_t channels, int64_t pixels) {
  PoolRow row{};
  row.input = input.data;
  row.row_stride = input.row_stride;
  row.pixel_stride = input.pixel_stride;
  row.rows = rows;
  row.width = width;
  row.kernel_w = window.kernel.w;
  row.stride_w = window.stride.w;
  row.padding_w = window.padding.w;
  row.channels = channels;
  row.pixels = pixels;
  return row;
}

void pool_row(const Microkernels& kernels, const PoolWindow& window, const Band& input,
              int64_t rows, int64_t width, const Image& y, int64_t n, int64_t h) {
  const bool direct = y.type == StorageType::float32;
  PoolRow row = window_row(window, input, rows, width, y.channels, y.width);
  row.output = direct ? reinterpret_cast<float*>(y.at(n, h, 0))
                      : thread_scratch().output.floats(y.width * y.channels);
  kernels.max_pool(row);
  if (direct) return;
  store_band(kernels, {row.output, y.width * y.channels, y.channels}, y, n, h, 1, 0, y.channels);
}

void run_max_pool(const Microkernels& kernels, const Image& x, const Image& y,
                  const PoolWindow& window) {
  parallel_rows(y.batch, y.height, [&](int64_t n, int64_t h) {
    const Range rows = window.input_rows(h, x.height);
    const Band input = float_rows(kernels, x, n, rows, thread_scratch().input);
    pool_row(kernels, window, input, rows.size(), x.width, y, n, h);
  });
}

}  // namespace fastres::cpu

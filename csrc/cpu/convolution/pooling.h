// The windows of a max-pooling, and rows of its output.

#pragma once

#include <algorithm>
#include <vector>

#include "../../checks.h"
#include "../runtime/parallel.h"
#include "image.h"

namespace fastres::cpu {

struct PoolWindow {
  Extent kernel, stride, padding;

  // Input rows [begin, end) of an image of so many that output row h is made of.
  Range input_rows(int64_t h, int64_t height) const {
    const int64_t top = h * stride.h - padding.h;
    return {std::max<int64_t>(top, 0), std::min(top + kernel.h, height)};
  }
};

// What the arguments of a pooling are called.
struct PoolNames {
  const char* pooled;
  const char* size;
  const char* stride;
  const char* padding;
};

// Checks the arguments, for images of `in`.
PoolWindow pool_window(const std::vector<int64_t>& size, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& padding, Extent in, const char* op,
                       const PoolNames& names);

Extent pooled_size(const PoolWindow& window, Extent in);

// A row of an output of so many pixels; other arguments as for pool_row(). Without a target.
PoolRow window_row(const PoolWindow& window, const Band& input, int64_t rows, int64_t width,
                   int64_t channels, int64_t pixels);

// Row h of image n of y, whose windows' rows inside of an image of `width` pixels `input` is.
void pool_row(const Microkernels& kernels, const PoolWindow& window, const Band& input,
              int64_t rows, int64_t width, const Image& y, int64_t n, int64_t h);

// All of y, on all threads.
void run_max_pool(const Microkernels& kernels, const Image& x, const Image& y,
                  const PoolWindow& window);

}  // namespace fastres::cpu

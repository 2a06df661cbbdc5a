// A whole bottleneck over all threads, depth-first.

#pragma once

#include <optional>

#include "conv_rows.h"

namespace fastres::cpu {

struct Bottleneck {
  int64_t batch = 0;
  Extent in, out;
  Extent stride, dilation;
  ConvLayer reduce;   // 1x1
  ConvLayer spatial;  // 3x3, padding == dilation
  ConvLayer expand;   // 1x1
  std::optional<ConvLayer> down;
  Image x;
  Image y;  // dense NHWC
};

// Depth-first: each thread takes a band of output rows through all convolutions, so that the inner
// activations never leave its level-2 cache.
void run_depth_first(const Microkernels& kernels, const Bottleneck& block);

}  // namespace fastres::cpu

// A whole bottleneck over all threads.

#pragma once

#include <optional>

#include "conv_layer.h"
#include "plain_weight.h"

namespace fastres::cpu {

// A convolution whose weights may still have to be packed.
struct BottleneckLayer : ConvLayer {
  PlainWeight plain;  // in place of `weights`; data is null for none
};

struct Bottleneck {
  int64_t batch = 0;
  Extent in, out;
  Extent stride, dilation;
  BottleneckLayer reduce;   // 1x1
  BottleneckLayer spatial;  // 3x3, padding == dilation
  BottleneckLayer expand;   // 1x1
  std::optional<BottleneckLayer> down;
  Image x;
  Image y;  // dense NHWC
};

// Whether the block is computed depth-first, by this many threads as there are now; the others are
// layer by layer.
bool prefers_depth_first(const Microkernels& kernels, const Bottleneck& block);

void run_bottleneck(const Microkernels& kernels, const Bottleneck& block, bool depth_first);

}  // namespace fastres::cpu

// A whole convolution over all threads.

#pragma once

#include "conv_rows.h"
#include "plain_weight.h"

namespace fastres::cpu {

struct Conv {
  ConvGeometry geometry;
  ConvLayer layer;
  PlainWeight plain;  // packed while convolving, in place of layer.weights; data is null for none
  Image x;
  Image residual;  // data is null for none
  Image out;       // dense NHWC
};

void run_conv(const Microkernels& kernels, Conv conv);

}  // namespace fastres::cpu

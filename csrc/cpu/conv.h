// A whole convolution over all threads.

#pragma once

#include "conv_rows.h"

namespace fastres::cpu {

struct Conv {
  ConvGeometry geometry;
  ConvLayer layer;
  Image x;
  Image residual;  // data is null for none
  Image out;       // dense NHWC
};

void run_conv(const Microkernels& kernels, Conv conv);

}  // namespace fastres::cpu

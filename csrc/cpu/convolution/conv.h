// A whole convolution over all threads.

#pragma once

#include <optional>

#include "conv_layer.h"
#include "pack_on_use.h"

namespace fastres::cpu {

struct Conv {
  ConvGeometry geometry;
  ConvLayer layer;
  PlainWeight plain;  // packed while convolving, in place of layer.weights; data is null for none
  Image x;
  Image residual;  // data is null for none
  Image out;       // dense NHWC
};

// Makes the layer read `weight` from `payload`, of header.payload_floats() floats: packed on use,
// or at once where blocks are not used one by one.
void set_packed(const Microkernels& kernels, const PlainWeight& weight, float* payload,
                ConvLayer& layer, std::optional<PackOnUse>& packing);

void run_conv(const Microkernels& kernels, Conv conv);

// What run_conv() computes it by, in words for people.
const char* kernel_name(const Microkernels& kernels, Conv conv);

}  // namespace fastres::cpu

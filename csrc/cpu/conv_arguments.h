// What conv_bn_act and live_conv_bn_act do alike: everything but the weight.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "convolution/conv.h"
#include "convolution/tensor_image.h"

namespace fastres::cpu {

// The arguments that both have, as they came.
struct ConvArguments {
  const Tensor& x;
  const Tensor& shift;
  const std::optional<Tensor>& residual;
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& padding;
  const std::vector<int64_t>& dilation;
  int64_t groups;
  const std::string& act;
  double act_slope;
};

// The weight: packed, or `plain` where `packed` is null; called `name` in messages.
struct ConvWeight {
  const PackedHeader& header;
  Extent kernel;
  const float* packed;
  const PlainWeight& plain;
  const char* name;
};

// Checks the arguments; what they are together, but for `out`. Keeps a copy of the shift in
// `dense_shift` where it needs one.
Conv checked_conv(const ConvArguments& arguments, const ConvWeight& weight, const char* op,
                  Tensor& dense_shift);

// Checks the arguments and convolves.
Tensor convolve(const ConvArguments& arguments, const ConvWeight& weight, const char* op);

}  // namespace fastres::cpu

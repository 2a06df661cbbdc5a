// What conv_bn_act and live_conv_bn_act do alike: everything but the weight.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "conv.h"
#include "tensor_image.h"

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

// Checks the arguments for a weight with this header, called `weight_name`, and convolves. The
// layer's weights are `packed`, or `plain` where that is null.
Tensor convolve(const ConvArguments& arguments, const PackedHeader& header, Extent kernel,
                const float* packed, const PlainWeight& plain, const char* op,
                const char* weight_name);

}  // namespace fastres::cpu

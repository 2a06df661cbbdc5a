// What grouped_bottleneck and live_bottleneck share: all but where a layer's weight comes from.

#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "executor.h"
#include "inference.h"

namespace fastres::cuda {

// The convolutions of a block, in the order of the operators' arguments.
enum class Part { reduce, spatial, expand, down };

struct BottleneckArguments {
  const Tensor& x;
  bool has_down;
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& dilation;
  int64_t groups;
  const std::string& act;
  const char* op;
  const char* weight_name;  // without the part's suffix
};

// Checks a part's constants, whose names end in `suffix`, and fills in its output's sizes.
using FillLayer = std::function<void(Part part, const std::string& suffix, Operands& operands,
                                     ConvGeometry& geometry, ConvBnActArguments& arguments)>;

Tensor bottleneck(const BottleneckArguments& arguments, const FillLayer& fill);

}  // namespace fastres::cuda

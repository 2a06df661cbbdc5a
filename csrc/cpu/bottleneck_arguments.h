// What the operators of bottlenecks do alike: everything but the weights.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "convolution/bottleneck.h"
#include "convolution/plain_tensor.h"
#include "convolution/tensor_image.h"

namespace fastres::cpu {

// A layer whose weight is checked; keeps the tensors alive that it points into.
struct CheckedLayer {
  BottleneckLayer layer;
  std::vector<Tensor> kept;
};

// The layer of a weight that is packed at each call.
CheckedLayer plain_layer(CheckedWeight source);

// Adds a shift to a layer, whose header tells how many channels it has.
void set_shift(CheckedLayer& checked, const Tensor& shift, const char* op, const char* name);

// What is known of a block's input before it is there.
struct BlockInput {
  int64_t batch, channels;
  Extent size;
  StorageType type;
};

// Checks x.
BlockInput block_input(const Tensor& x, const char* op);

// The arguments that both have; of the layers the weights are checked by themselves.
struct BottleneckArguments {
  const BlockInput& x;
  const CheckedLayer& reduce;
  const CheckedLayer& spatial;
  const CheckedLayer& expand;
  const std::optional<CheckedLayer>& down;
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& dilation;
  const std::string& act;
};

// What the weight of each layer is called in messages.
struct WeightNames {
  const char *reduce, *spatial, *expand, *down;
};

// In a chain, whose arguments have no name for each.
inline constexpr WeightNames kConvNames{"the weight of conv1", "the weight of conv2",
                                        "the weight of conv3", "the weight of the shortcut"};

// A block that only lacks its input and output.
struct CheckedBottleneck {
  Bottleneck block;
  const Microkernels* kernels;
  bool depth_first;
  std::vector<Tensor> kept;
};

// Checks that the layers fit together.
CheckedBottleneck checked_bottleneck(const BottleneckArguments& arguments, int64_t groups,
                                     const WeightNames& names, const char* op);

// Of the block after these, the first of which reads x.
BlockInput next_input(const Tensor& x, const std::vector<CheckedBottleneck>& blocks,
                      const char* op);

// Runs blocks one after the other. All are checked before the first is run: between two that read
// megabytes of weights nothing else is in the caches, and what it would take then adds up.
Tensor run_bottlenecks(const Tensor& x, const std::vector<CheckedBottleneck>& blocks);

}  // namespace fastres::cpu

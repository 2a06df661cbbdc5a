// The arguments that conv_stats and conv_stats_backward share.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tensors.h"

namespace fastres::cuda {

struct TrainingConv {
  ConvGeometry geometry;
  Source x;  // with the prologue
  WeightTensor weight;

  TrainingConv(Operands& operands, const Tensor& input, const std::optional<Tensor>& in_mean,
               const std::optional<Tensor>& in_scale, const std::optional<Tensor>& in_bias,
               const std::string& in_act, double in_act_slope, const Tensor& weight_,
               const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
               const std::vector<int64_t>& dilation, int64_t groups, const std::string& algorithm,
               const char* op) {
    check_input(input, op);
    operands.check_device(weight_, "weight");
    check_weight(weight_, input, groups, op);
    ConvGeometry& g = geometry;
    g.batch = input.size(0);
    g.in_channels = input.size(1);
    g.in = {input.size(2), input.size(3)};
    g.out_channels = weight_.size(0);
    g.kernel = {weight_.size(2), weight_.size(3)};
    g.stride = positive_pair(stride, op, "stride");
    g.dilation = positive_pair(dilation, op, "dilation");
    g.padding = padding_of(padding, op);
    g.groups = groups;
    set_output_size(g, op);
    check_training_algorithm(weight_, algorithm, g, op);  // these kernels convolve directly
    check(in_mean.has_value() == in_scale.has_value() && in_mean.has_value() == in_bias.has_value(),
          op, ": in_mean, in_scale and in_bias must be given together or not at all");
    x = plain_source(operands.image(input, "x"));
    x.mean = operands.vector(in_mean, g.in_channels, "in_mean");
    x.scale = operands.vector(in_scale, g.in_channels, "in_scale");
    x.bias = operands.vector(in_bias, g.in_channels, "in_bias");
    x.act = activation_of(in_act, op);
    x.act_slope = static_cast<float>(in_act_slope);
    weight = weight_tensor(weight_);
  }
};

}  // namespace fastres::cuda

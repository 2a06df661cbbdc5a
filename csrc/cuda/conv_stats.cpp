// conv_stats on CUDA: a convolution of an activated input, and its output's statistics.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "executor.h"
#include "training_conv.h"

namespace fastres::cuda {
namespace {

constexpr const char* kOp = "conv_stats";

std::tuple<Tensor, Tensor, Tensor> conv_stats_on_cuda(
    const Tensor& x, const std::optional<Tensor>& in_mean, const std::optional<Tensor>& in_scale,
    const std::optional<Tensor>& in_bias, const std::string& in_act, double in_act_slope,
    const Tensor& weight, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, const std::string& algorithm) {
  Operands operands(x, kOp, "x");
  const TrainingConv conv(operands, x, in_mean, in_scale, in_bias, in_act, in_act_slope, weight,
                          stride, padding, dilation, groups, algorithm, kOp);
  const ConvGeometry& g = conv.geometry;
  Tensor y = operands.empty_image(g.batch, g.out_channels, g.out, x.scalar_type());
  Tensor mean = operands.empty(g.out_channels), m2 = operands.empty(g.out_channels);
  TorchExecutor executor(x);
  conv_stats(executor, dtype_of(x), g,
             {conv.x, conv.weight, y.mutable_data_ptr(), floats_of(mean), floats_of(m2)});
  return {y, mean, m2};
}

}  // namespace
}  // namespace fastres::cuda

STABLE_TORCH_LIBRARY_IMPL(fastres, CUDA, m) {
  m.impl("conv_stats", TORCH_BOX(&fastres::cuda::conv_stats_on_cuda));
}

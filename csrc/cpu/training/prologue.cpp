#include "prologue.h"

#include <algorithm>

#include "../convolution/split_rows.h"
#include "../runtime/scratch.h"

namespace fastres::cpu {
namespace {

WeightView weight_view(const ConvStatsArguments& a, const char* op, std::vector<Tensor>& kept) {
  const Tensor& weight = a.weight;
  check_cpu(weight, op, "weight");
  check_weight(weight, a.x, a.groups, op);
  const Tensor values = as_float(weight);
  kept.push_back(values);
  return {static_cast<float*>(const_cast<void*>(values.const_data_ptr())),
          values.size(0),
          values.size(1),
          {values.size(2), values.size(3)},
          a.groups,
          values.stride(0),
          values.stride(1),
          values.stride(2),
          values.stride(3)};
}

}  // namespace

const float* channel_vector(const Tensor& values, int64_t channels, const char* op,
                            const char* name, std::vector<Tensor>& kept) {
  check_cpu(values, op, name);
  check_shift(values, channels, op, name);
  kept.push_back(as_contiguous(values));
  return kept.back().const_data_ptr<float>();
}

TrainingConv::TrainingConv(const ConvStatsArguments& a, const char* op)
    : identity((check_input(a.x, op), a.x.size(1))) {
  x = image_of(a.x);
  weight = weight_view(a, op, kept);
  ConvGeometry& g = geometry;
  g.batch = x.batch;
  g.in_channels = x.channels;
  g.in = {x.height, x.width};
  g.out_channels = weight.out_channels;
  g.kernel = weight.kernel;
  g.stride = positive_pair(a.stride, op, "stride");
  g.dilation = positive_pair(a.dilation, op, "dilation");
  g.padding = padding_of(a.padding, op);
  g.groups = a.groups;
  set_output_size(g, op);
  check_training_algorithm(a.weight, a.algorithm, g, op);
  winograd = a.algorithm == "winograd" && !multiplies_bfloat16(selected_microkernels(x.type));

  has_affine = a.in_mean.has_value();
  check(a.in_scale.has_value() == has_affine && a.in_bias.has_value() == has_affine, op,
        ": in_mean, in_scale and in_bias must be given together or not at all");
  prologue.main = identity.identity();
  if (has_affine) {
    prologue.main = {channel_vector(*a.in_mean, x.channels, op, "in_mean", kept),
                     channel_vector(*a.in_scale, x.channels, op, "in_scale", kept),
                     channel_vector(*a.in_bias, x.channels, op, "in_bias", kept)};
  }
  if (g.is_pointwise() && !a.every_pixel) {
    step = g.stride;
    x = strided_image(x, step);
    g.in = g.out;
    g.stride = {1, 1};
  }
  prologue.act = activation_of(a.in_act, op);
  prologue.act_slope = static_cast<float>(a.in_act_slope);
  has_prologue = has_affine || prologue.act != Activation::none;
}

namespace {

void load_activated_row(const Kernels& kernels, const TrainingConv& conv, int64_t n, int64_t h,
                        Range channels, Pixels target) {
  const Image& x = conv.x;
  const int64_t count = channels.size();
  float* scratch = thread_scratch().inner1.floats(x.width * count);
  const ConstPixels source = row_pixels(kernels.base, x, n, h, channels, scratch);
  if (!conv.has_prologue) {
    for (int64_t i = 0; i < x.width; ++i) {
      std::copy_n(source.data + i * source.stride, count, target.data + i * target.stride);
    }
    return;
  }
  AffineAct prologue = conv.prologue;
  prologue.main = prologue.main.from(channels.begin);
  kernels.training.affine_act(prologue, source, {}, target, x.width, count);
}

}  // namespace

Band load_activated(const Kernels& kernels, const TrainingConv& conv, const PaddedRows& what,
                    Range channels, float* target) {
  const Image& x = conv.x;
  const int64_t count = channels.size();
  const int64_t stride = band_pixel_stride(count);
  if (!conv.has_prologue && count == x.channels) {
    return load_band(kernels.base, x, what, target, stride);
  }
  return padded_band(x, what, count, target, stride, [&](int64_t h, float* row) {
    load_activated_row(kernels, conv, what.n, h, channels, {row, stride});
  });
}

}  // namespace fastres::cpu

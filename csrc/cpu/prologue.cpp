#include "prologue.h"

#include <algorithm>

#include "scratch.h"

namespace fastres::cpu {
namespace {

WeightView weight_view(const ConvStatsArguments& a, const char* op, std::vector<Tensor>& kept) {
  const Tensor& weight = a.weight;
  check_cpu(weight, op, "weight");
  check(weight.dim() == 4 && weight.numel() > 0, op,
        ": weight must be 4-D [K, C/groups, R, S], no size 0, got shape ", shape_string(weight));
  check(is_storage_type(weight.scalar_type()), op,
        ": weight must be float32, bfloat16 or float16, got ",
        torch::headeronly::toString(weight.scalar_type()));
  check(a.groups > 0 && weight.size(0) % a.groups == 0, op,
        ": groups must be positive and divide the ", weight.size(0), " output channels, got ",
        a.groups);
  check(weight.size(1) * a.groups == a.x.size(1), op, ": weight must have ", a.x.size(1), "/",
        a.groups, " input channels a group, those of x over groups, got shape ",
        shape_string(weight));
  const Tensor values = torch::stable::to(weight, ScalarType::Float);
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
  kept.push_back(torch::stable::contiguous(values));
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

  has_affine = a.in_mean.has_value();
  check(a.in_scale.has_value() == has_affine && a.in_bias.has_value() == has_affine, op,
        ": in_mean, in_scale and in_bias must be given together or not at all");
  prologue.main = identity.identity();
  if (has_affine) {
    prologue.main = {channel_vector(*a.in_mean, x.channels, op, "in_mean", kept),
                     channel_vector(*a.in_scale, x.channels, op, "in_scale", kept),
                     channel_vector(*a.in_bias, x.channels, op, "in_bias", kept)};
  }
  prologue.act = activation_of(a.in_act, op);
  prologue.act_slope = static_cast<float>(a.in_act_slope);
  has_prologue = has_affine || prologue.act != Activation::none;
}

void join_images(ConvGeometry& g, std::vector<Image*> images) {
  if (!g.is_pointwise() || g.stride.h != 1 || g.stride.w != 1) return;
  const auto joins = [](const Image* image) {
    return image->batch <= 1 || image->stride_n == image->height * image->stride_h;
  };
  if (!std::all_of(images.begin(), images.end(), joins)) return;
  for (Image* image : images) {
    image->height *= image->batch;
    image->batch = 1;
  }
  g.in.h *= g.batch;
  g.out.h *= g.batch;
  g.batch = 1;
}

Band load_activated(const Kernels& kernels, const TrainingConv& conv, const PaddedRows& what,
                    float* target) {
  const Image& x = conv.x;
  if (!conv.has_prologue) return load_band(kernels.base, x, what, target);
  const int64_t channels = x.channels;
  const int64_t row_floats = (what.left + x.width + what.right) * channels;
  for (int64_t i = 0; i < what.rows; ++i) {
    float* row = target + i * row_floats;
    const int64_t h = what.row + i;
    if (h < 0 || h >= x.height) {
      std::fill_n(row, row_floats, 0.0F);
      continue;
    }
    float* inside = row + what.left * channels;
    std::fill_n(row, what.left * channels, 0.0F);
    const ConstPixels source = row_pixels(kernels.base, x, what.n, h, {0, channels}, inside);
    kernels.training.affine_act(conv.prologue, source, {}, {inside, channels}, x.width, channels);
    std::fill_n(inside + x.width * channels, what.right * channels, 0.0F);
  }
  return {target, row_floats, channels};
}

}  // namespace fastres::cpu

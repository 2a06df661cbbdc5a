#include "output_gradient.h"

#include <algorithm>

#include "../runtime/scratch.h"

namespace fastres::cpu {
OutputGradient::OutputGradient(const Tensor& grad_y, const std::optional<Tensor>& grad_scale,
                               const std::optional<Tensor>& grad_mean,
                               const std::optional<Tensor>& grad_m2, const Tensor& y,
                               const Tensor& mean, const Tensor& x, const TrainingConv& conv,
                               const char* op)
    : plain_(!grad_scale.has_value() && !grad_mean.has_value() && !grad_m2.has_value()) {
  const ConvGeometry& g = conv.geometry;
  check_cpu(grad_y, op, "grad_y");
  check_output_like(grad_y, x, g, op, "grad_y");
  check_cpu(y, op, "y");
  check_output_like(y, x, g, op, "y");
  grad_ = image_of(grad_y);
  y_ = image_of(y);
  mean_ = channel_vector(mean, g.out_channels, op, "mean", kept_);
  offset_.assign(static_cast<size_t>(g.out_channels), 0.0F);
  slope_ = offset_;
  scale_.assign(offset_.size(), 1.0F);
  if (grad_scale.has_value()) {
    const float* values = channel_vector(*grad_scale, g.out_channels, op, "grad_scale", kept_);
    std::copy_n(values, g.out_channels, scale_.begin());
  }
  if (grad_mean.has_value()) {
    const float* values = channel_vector(*grad_mean, g.out_channels, op, "grad_mean", kept_);
    const auto count = static_cast<float>(std::max<int64_t>(1, g.batch * g.out.h * g.out.w));
    std::transform(values, values + g.out_channels, offset_.begin(),
                   [=](float value) { return value / count; });
  }
  if (grad_m2.has_value()) {
    const float* values = channel_vector(*grad_m2, g.out_channels, op, "grad_m2", kept_);
    std::transform(values, values + g.out_channels, slope_.begin(),
                   [](float value) { return 2.0F * value; });
  }
}

Band OutputGradient::load(const Kernels& kernels, const Part& part, float* target) const {
  const int64_t stride = band_pixel_stride(part.channels.size());
  const int64_t row_floats = std::max<int64_t>(0, part.columns.size()) * stride;
  const Range inside{std::max<int64_t>(0, part.columns.begin),
                     std::min(grad_.width, part.columns.end)};
  for (int64_t i = 0; i < part.rows.size(); ++i) {
    float* row = target + i * row_floats;
    const int64_t h = part.rows.begin + i;
    if (h < 0 || h >= grad_.height || inside.size() <= 0) {
      std::fill_n(row, row_floats, 0.0F);
      continue;
    }
    float* begin = row + (inside.begin - part.columns.begin) * stride;
    float* end = begin + inside.size() * stride;
    std::fill(row, begin, 0.0F);
    load_row(kernels, part, h, inside, {begin, stride});
    std::fill(end, row + row_floats, 0.0F);
  }
  return {target, row_floats, stride};
}

Upcoming OutputGradient::upcoming(int64_t n, Range rows) const {
  Upcoming upcoming;
  const int64_t first = std::max<int64_t>(0, rows.begin);
  upcoming.add_rows(grad_, n, first, rows.end);
  if (!plain_) upcoming.add_rows(y_, n, first, rows.end);
  return upcoming;
}

void OutputGradient::load_row(const Kernels& kernels, const Part& part, int64_t h, Range columns,
                              Pixels target) const {
  const int64_t count = part.channels.size();
  float* scratch = thread_scratch().residual.floats(2 * grad_.width * count);
  ConstPixels grad = row_pixels(kernels.base, grad_, part.n, h, part.channels, scratch);
  grad.data += columns.begin * grad.stride;
  if (plain_) {
    for (int64_t i = 0; i < columns.size(); ++i) {
      std::copy_n(grad.data + i * grad.stride, count, target.data + i * target.stride);
    }
    return;
  }
  ConstPixels y =
      row_pixels(kernels.base, y_, part.n, h, part.channels, scratch + grad_.width * count);
  y.data += columns.begin * y.stride;
  const int64_t first = part.channels.begin;
  const StatsGradient f{scale_.data() + first, offset_.data() + first, slope_.data() + first,
                        mean_ + first};
  kernels.training.stats_gradient(f, grad, y, target, columns.size(), count);
}

}  // namespace fastres::cpu

// affine_add_act and its backward on the CPU: the end of a block in one pass over its tensors.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/allocate.h"
#include "runtime/scratch.h"
#include "training/prologue.h"

namespace fastres::cpu {
namespace {

// Rows that one thread takes at a time: small, as nothing is kept between them.
constexpr int64_t kRowBytes = int64_t{1} << 17;

struct Vectors {
  const std::optional<Tensor>& mean;
  const std::optional<Tensor>& scale;
  const std::optional<Tensor>& bias;
};

// The arguments that forward and backward share, as the kernels see them.
struct BlockEnd {
  Image y, residual;  // residual's data is null for none
  AffineAct f;
  bool residual_affine;
  AffineConstants identity;
  std::vector<Tensor> kept;

  BlockEnd(const Tensor& y_, const Tensor& mean, const Tensor& scale, const Tensor& bias,
           const std::optional<Tensor>& residual_, const Vectors& res, const std::string& act,
           double act_slope, const char* op)
      : residual_affine(res.mean.has_value()), identity((check_block_end(y_, op), y_.size(1))) {
    y = image_of(y_);
    const int64_t c = y.channels;
    f.main = {channel_vector(mean, c, op, "mean", kept),
              channel_vector(scale, c, op, "scale", kept),
              channel_vector(bias, c, op, "bias", kept)};
    f.residual = identity.identity();
    f.act = activation_of(act, op);
    f.act_slope = static_cast<float>(act_slope);
    check(res.scale.has_value() == residual_affine && res.bias.has_value() == residual_affine, op,
          ": res_mean, res_scale and res_bias must be given together or not at all");
    check(!residual_affine || residual_.has_value(), op, ": res_mean needs a residual");
    if (!residual_.has_value()) return;
    check_cpu(*residual_, op, "residual");
    check_like(*residual_, y_, op, "residual");
    residual = image_of(*residual_);
    if (!residual_affine) return;
    f.residual = {channel_vector(*res.mean, c, op, "res_mean", kept),
                  channel_vector(*res.scale, c, op, "res_scale", kept),
                  channel_vector(*res.bias, c, op, "res_bias", kept)};
  }

  int64_t row_floats() const { return y.width * y.channels; }
  Slices slices() const {
    return {y.batch, y.height, kRowBytes / 4 / std::max<int64_t>(1, row_floats())};
  }
};

ConstPixels residual_row(const Kernels& kernels, const BlockEnd& end, int64_t n, int64_t h,
                         float* scratch) {
  if (end.residual.data == nullptr) return {};
  return row_pixels(kernels.base, end.residual, n, h, {0, end.y.channels}, scratch);
}

// A row of a dense NHWC output: where it lies if it is float32, else `scratch`, to be stored.
class OutputRow {
 public:
  OutputRow(const Image& image, int64_t n, int64_t h, float* scratch)
      : image_(image),
        n_(n),
        h_(h),
        data_(image.type == StorageType::float32 ? reinterpret_cast<float*>(image.at(n, h, 0))
                                                 : scratch) {}
  Pixels pixels(int64_t first) const { return {data_ + first * image_.channels, image_.channels}; }
  void store(const Kernels& kernels) const {
    if (image_.type == StorageType::float32) return;
    const Band band{data_, image_.width * image_.channels, image_.channels};
    store_band(kernels.base, band, image_, n_, h_, 1, 0, image_.channels);
  }

 private:
  const Image& image_;
  int64_t n_, h_;
  float* data_;
};

Tensor affine_add_act(const Tensor& y, const Tensor& mean, const Tensor& scale, const Tensor& bias,
                      const std::optional<Tensor>& residual, const std::optional<Tensor>& res_mean,
                      const std::optional<Tensor>& res_scale, const std::optional<Tensor>& res_bias,
                      const std::string& act, double act_slope) {
  const BlockEnd end(y, mean, scale, bias, residual, {res_mean, res_scale, res_bias}, act,
                     act_slope, "affine_add_act");
  Tensor out =
      empty_nhwc(end.y.batch, end.y.channels, {end.y.height, end.y.width}, y.scalar_type(), y);
  const Image target = image_of(out);
  const Kernels kernels = selected_kernels();
  const Slices slices = end.slices();
  if (out.numel() == 0) return out;
  parallel_parts(slices.count(), [&](int64_t i) {
    const Slices::Slice slice = slices[i];
    float* scratch = thread_scratch().input.floats(3 * end.row_floats());
    for (int64_t h = slice.row; h < slice.row + slice.rows; ++h) {
      const ConstPixels x =
          row_pixels(kernels.base, end.y, slice.image, h, {0, end.y.channels}, scratch);
      const ConstPixels r = residual_row(kernels, end, slice.image, h, scratch + end.row_floats());
      const OutputRow row(target, slice.image, h, scratch + 2 * end.row_floats());
      kernels.training.affine_act(end.f, x, r, row.pixels(0), end.y.width, end.y.channels);
      row.store(kernels);
    }
  });
  return out;
}

struct BlockSums {
  Totals grad, main, residual;
  explicit BlockSums(int64_t channels) : grad(channels), main(channels), residual(channels) {}
};

// The gradients' sums and, dense NHWC, the gradients of y and of the residual; or unscaled, what
// both are made of for y's alone.
class BlockEndGradient {
 public:
  BlockEndGradient(const Kernels& kernels, const BlockEnd& end, const Image& grad,
                   const Image& grad_y, const Image& grad_residual, bool unscaled)
      : kernels_(kernels),
        end_(end),
        grad_(grad),
        grad_y_(grad_y),
        grad_residual_(grad_residual),
        unscaled_(unscaled) {}

  BlockSums run() const {
    const Slices slices = end_.slices();
    std::vector<BlockSums> parts(static_cast<size_t>(slices.count()), BlockSums(end_.y.channels));
    parallel_parts(slices.count(), [&](int64_t i) {
      const Slices::Slice slice = slices[i];
      for (int64_t h = slice.row; h < slice.row + slice.rows; ++h) {
        run_row(slice.image, h, parts[static_cast<size_t>(i)]);
      }
    });
    for (size_t i = 1; i < parts.size(); ++i) {
      parts[0].grad.add(parts[i].grad);
      parts[0].main.add(parts[i].main);
      parts[0].residual.add(parts[i].residual);
    }
    return std::move(parts[0]);
  }

 private:
  void run_row(int64_t n, int64_t h, BlockSums& totals) const {
    const int64_t channels = end_.y.channels;
    const int64_t floats = end_.row_floats();
    float* scratch = thread_scratch().input.floats(5 * floats + 3 * channels);
    const Range all{0, channels};
    const ConstPixels g = row_pixels(kernels_.base, grad_, n, h, all, scratch);
    const ConstPixels x = row_pixels(kernels_.base, end_.y, n, h, all, scratch + floats);
    const ConstPixels r = residual_row(kernels_, end_, n, h, scratch + 2 * floats);
    const OutputRow grad_y(grad_y_, n, h, scratch + 3 * floats);
    const OutputRow grad_residual(grad_residual_, n, h, scratch + 4 * floats);
    const bool has_residual = r.data != nullptr, writes_both = has_residual && !unscaled_;
    float* sums = scratch + 5 * floats;
    short_runs(end_.y.width, [&](int64_t first, int64_t pixels) {
      std::fill_n(sums, 3 * channels, 0.0F);
      const auto from = [&](ConstPixels p) {
        return ConstPixels{p.data + first * p.stride, p.stride};
      };
      kernels_.training.affine_act_backward(
          end_.f, {from(g), {}, from(x), has_residual ? from(r) : ConstPixels{}, {}},
          {grad_y.pixels(first),
           writes_both ? grad_residual.pixels(first) : Pixels{},
           {},
           unscaled_},
          {sums, sums + channels, sums + 2 * channels}, pixels, channels);
      totals.grad.add(sums);
      totals.main.add(sums + channels);
      totals.residual.add(sums + 2 * channels);
    });
    grad_y.store(kernels_);
    if (writes_both) grad_residual.store(kernels_);
  }

  const Kernels kernels_;
  const BlockEnd& end_;
  const Image& grad_;
  const Image& grad_y_;
  const Image& grad_residual_;
  const bool unscaled_;
};

// The gradients of an affine's mean, scale and bias.
struct AffineGradients {
  Tensor mean, scale, bias;

  // Empty where `channels` is 0.
  AffineGradients(const Totals& grad, const Totals& centred, const float* factors, int64_t channels,
                  const Tensor& like)
      : mean(empty_vector(channels, like)),
        scale(empty_vector(channels, like)),
        bias(empty_vector(channels, like)) {
    auto* means = static_cast<float*>(mean.mutable_data_ptr());
    auto* scales = static_cast<float*>(scale.mutable_data_ptr());
    auto* biases = static_cast<float*>(bias.mutable_data_ptr());
    for (int64_t c = 0; c < channels; ++c) {
      means[c] = static_cast<float>(-grad[c] * factors[c]);
      scales[c] = static_cast<float>(centred[c]);
      biases[c] = static_cast<float>(grad[c]);
    }
  }
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients affine_add_act_backward(const Tensor& grad, const Tensor& y, const Tensor& mean,
                                  const Tensor& scale, const Tensor& bias,
                                  const std::optional<Tensor>& residual,
                                  const std::optional<Tensor>& res_mean,
                                  const std::optional<Tensor>& res_scale,
                                  const std::optional<Tensor>& res_bias, const std::string& act,
                                  double act_slope, bool unscaled) {
  constexpr const char* kOp = "affine_add_act_backward";
  const BlockEnd end(y, mean, scale, bias, residual, {res_mean, res_scale, res_bias}, act,
                     act_slope, kOp);
  check_cpu(grad, kOp, "grad");
  check_like(grad, y, kOp, "grad");
  const Extent size{end.y.height, end.y.width};
  const int64_t channels = end.y.channels;
  Tensor grad_y = empty_nhwc(end.y.batch, channels, size, y.scalar_type(), y);
  const bool writes_both = residual.has_value() && !unscaled;
  Tensor grad_residual = writes_both
                             ? empty_nhwc(end.y.batch, channels, size, y.scalar_type(), y)
                             : torch::stable::empty({0}, y.scalar_type(), std::nullopt, y.device());
  BlockSums sums(channels);
  if (y.numel() > 0) {
    const Image grad_image = image_of(grad), target = image_of(grad_y);
    const Image residual_target = writes_both ? image_of(grad_residual) : target;
    sums = BlockEndGradient(selected_kernels(), end, grad_image, target, residual_target, unscaled)
               .run();
  }
  const AffineGradients main(sums.grad, sums.main, end.f.main.scale, channels, y);
  const AffineGradients shortcut(sums.grad, sums.residual, end.f.residual.scale,
                                 end.residual_affine ? channels : 0, y);
  return {grad_y,        main.mean,     main.scale,     main.bias,
          grad_residual, shortcut.mean, shortcut.scale, shortcut.bias};
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("affine_add_act", TORCH_BOX(&fastres::cpu::affine_add_act));
  m.impl("affine_add_act_backward", TORCH_BOX(&fastres::cpu::affine_add_act_backward));
}

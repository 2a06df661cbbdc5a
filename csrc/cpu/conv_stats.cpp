// conv_stats on the CPU: a convolution of an activated input, and its output's statistics.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "allocate.h"
#include "cache.h"
#include "moments.h"
#include "prologue.h"
#include "scratch.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "conv_stats";

// One thread's convolution and statistics of slices of output rows.
class SliceRunner {
 public:
  SliceRunner(const Kernels& kernels, const TrainingConv& conv, const ConvLayer& layer,
              const Image& y)
      : kernels_(kernels),
        conv_(conv),
        layer_(layer),
        y_(y),
        direct_input_(!conv.has_prologue && conv.x.is_float32_nhwc() &&
                      !conv.geometry.padding.any()),
        direct_output_(y.type == StorageType::float32) {}

  int64_t rows_in_cache() const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t floats = g.stride.h * g.padded_width() * g.in_channels + g.out.w * g.out_channels;
    return level2_cache_bytes() / 4 / (floats * static_cast<int64_t>(sizeof(float)));
  }

  void run(const Slices::Slice& slice, Moments& moments) const {
    const ConvGeometry& g = conv_.geometry;
    ConvBand band;
    band.rows = slice.rows;
    band.pixels = g.out.w;
    band.input = input_band(slice);
    band.output = output_band(slice);
    const Range panels{0, panel_count(kernels_.base, layer_)};
    conv_rows(kernels_.base, layer_, band, panels);
    moments.add(kernels_, band.output, slice.rows, g.out.w);
    if (!direct_output_) {
      store_band(kernels_.base, band.output, y_, slice.image, slice.row, slice.rows, 0,
                 g.out_channels);
    }
  }

 private:
  static Band direct(const Image& image, int64_t n, int64_t h) {
    return {reinterpret_cast<float*>(image.at(n, h, 0)), image.stride_h, image.stride_w};
  }

  Band input_band(const Slices::Slice& slice) const {
    const ConvGeometry& g = conv_.geometry;
    if (direct_input_) return direct(conv_.x, slice.image, slice.row * g.stride.h);
    const PaddedRows what{slice.image, slice.row * g.stride.h - g.padding.top,
                          g.input_rows(slice.rows), g.padding.left, g.padding.right};
    const int64_t floats = band_floats(what.rows * g.padded_width(), g.in_channels);
    return load_activated(kernels_, conv_, what, {0, g.in_channels},
                          thread_scratch().input.floats(floats));
  }

  Band output_band(const Slices::Slice& slice) const {
    if (direct_output_) return direct(y_, slice.image, slice.row);
    const ConvGeometry& g = conv_.geometry;
    const int64_t row_floats = g.out.w * g.out_channels;
    return {thread_scratch().output.floats(slice.rows * row_floats), row_floats, g.out_channels};
  }

  const Kernels& kernels_;
  const TrainingConv& conv_;
  const ConvLayer& layer_;
  const Image& y_;
  const bool direct_input_;
  const bool direct_output_;
};

// Convolves all slices and merges their statistics in the slices' order.
Moments run(const Kernels& kernels, const TrainingConv& conv, Image y) {
  const Taps rows = all_taps(conv.weight.kernel.h), cols = all_taps(conv.weight.kernel.w);
  ConvLayer layer;
  layer.header = header_of(conv.weight, false, rows, cols);
  const PooledFloats packed(layer.header.payload_floats());
  pack_weight(kernels.base, conv.weight, false, rows, cols, packed.data());
  const std::vector<float> no_shift(static_cast<size_t>(conv.geometry.out_channels), 0.0F);
  layer.weights = packed.data();
  layer.shift = no_shift.data();
  layer.stride = conv.geometry.stride;
  layer.dilation = conv.geometry.dilation;

  const SliceRunner runner(kernels, conv, layer, y);
  const Slices slices(conv.geometry.batch, conv.geometry.out.h, runner.rows_in_cache());
  std::vector<Moments> parts(static_cast<size_t>(slices.count()),
                             Moments(conv.geometry.out_channels));
  parallel_parts(slices.count(),
                 [&](int64_t i) { runner.run(slices[i], parts[static_cast<size_t>(i)]); });
  for (size_t i = 1; i < parts.size(); ++i) parts[0].merge(parts[i]);
  return std::move(parts[0]);
}

Tensor float_tensor(const std::vector<double>& values, const Tensor& like) {
  Tensor out = torch::stable::empty({static_cast<int64_t>(values.size())}, ScalarType::Float,
                                    std::nullopt, like.device());
  auto* data = static_cast<float*>(out.mutable_data_ptr());
  std::transform(values.begin(), values.end(), data,
                 [](double value) { return static_cast<float>(value); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> conv_stats(
    const Tensor& x, const std::optional<Tensor>& in_mean, const std::optional<Tensor>& in_scale,
    const std::optional<Tensor>& in_bias, const std::string& in_act, double in_act_slope,
    const Tensor& weight, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups) {
  TrainingConv conv({x, in_mean, in_scale, in_bias, in_act, in_act_slope, weight, stride, padding,
                     dilation, groups},
                    kOp);
  ConvGeometry& g = conv.geometry;
  Tensor y = empty_nhwc(g.batch, g.out_channels, g.out, x.scalar_type(), x);
  Moments moments(g.out_channels);
  if (g.batch > 0) {
    Image out = image_of(y);
    join_images(g, {&conv.x, &out});
    moments = run(selected_kernels(), conv, out);
  }
  return {y, float_tensor(moments.mean(), x), float_tensor(moments.m2(), x)};
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("conv_stats", TORCH_BOX(&fastres::cpu::conv_stats));
}

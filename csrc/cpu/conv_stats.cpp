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

// One thread's convolution and statistics of slices of output rows. Panel by panel of output
// channels: their statistics are taken while a panel's output is in the cache, which need not have
// room for all channels.
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
        direct_output_(y.type == StorageType::float32),
        fetches_output_(direct_output_ && weight_bytes(layer) <= level2_cache_bytes() / 4) {}

  int64_t rows_in_cache() const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t input = g.stride.h * g.padded_width() * g.in_channels;
    const int64_t output = g.out.w * g.out_channels;
    // As the convolution reads it, and the next slice's as it comes.
    int64_t floats = (direct_input_ ? 1 : 2) * input;
    if (fetches_output_ || !direct_output_) floats += output;
    if (fetches_output_) floats += output;
    return level2_cache_bytes() / 2 / (floats * static_cast<int64_t>(sizeof(float)));
  }

  // `next` comes after the slice; it may be the same.
  void run(const Slices::Slice& slice, const Slices::Slice& next, Moments& moments) const {
    const ConvGeometry& g = conv_.geometry;
    ConvBand band;
    band.rows = slice.rows;
    band.pixels = g.out.w;
    band.input = input_band(slice);
    band.output = output_band(slice);
    const Upcoming upcoming = upcoming_rows(next);
    const int64_t panels = panel_count(kernels_.base, layer_);
    for (int64_t panel = 0; panel < panels; ++panel) {
      run_panel(band, upcoming, panels, panel, moments);
    }
    moments.count(slice.rows * g.out.w);
    if (!direct_output_) {
      store_band(kernels_.base, band.output, y_, slice.image, slice.row, slice.rows, 0,
                 g.out_channels);
    }
  }

 private:
  void run_panel(const ConvBand& band, const Upcoming& upcoming, int64_t panels, int64_t panel,
                 Moments& moments) const {
    ConvLayer layer = layer_;
    for (const FloatSpan& span : upcoming.part(panels, panel).spans) layer.upcoming.add(span);
    if (panel + 1 < panels) layer.upcoming.add(panel_floats(kernels_.base, layer, panel + 1));
    conv_rows(kernels_.base, layer, band, {panel, panel + 1});
    const Range channels = panel_channels(kernels_.base, layer, {panel, panel + 1});
    Band output = band.output;
    output.data += channels.begin;
    moments.add(kernels_, output, band.rows, band.pixels, channels);
  }

  Upcoming upcoming_rows(const Slices::Slice& next) const {
    const ConvGeometry& g = conv_.geometry;
    Upcoming upcoming;
    const int64_t row = std::max<int64_t>(0, next.row * g.stride.h - g.padding.top);
    upcoming.add_rows(conv_.x, next.image, row, row + g.input_rows(next.rows));
    if (fetches_output_) upcoming.add_rows(y_, next.image, next.row, next.row + next.rows);
    return upcoming;
  }

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
  const bool fetches_output_;  // the weights leave the cache room
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
  parallel_parts(slices.count(), [&](int64_t i) {
    const int64_t next = std::min(i + 1, slices.count() - 1);
    runner.run(slices[i], slices[next], parts[static_cast<size_t>(i)]);
  });
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

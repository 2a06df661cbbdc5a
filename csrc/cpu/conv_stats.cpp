// conv_stats on the CPU: a convolution of an activated input, and its output's statistics.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "convolution/conv_rows.h"
#include "convolution/panels.h"
#include "convolution/split_rows.h"
#include "convolution/winograd_batch.h"
#include "runtime/allocate.h"
#include "runtime/buffer_pool.h"
#include "runtime/cache.h"
#include "runtime/scratch.h"
#include "training/moments.h"
#include "training/prologue.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "conv_stats";

// How many parts of the panels, times the slices, several threads can share evenly.
int64_t panel_parts(int64_t slices, int64_t panels) {
  const int64_t parts = Slices::kForThreads / std::gcd(slices, Slices::kForThreads);
  return std::min(parts, panels);
}

// Convolves slices of output rows and takes their statistics, panel by panel of output channels:
// while a panel's output is in the cache, which need not have room for all channels.
class SliceRunner {
 public:
  SliceRunner(const Kernels& kernels, const TrainingConv& conv, const ConvLayer& layer,
              const Image& y)
      : kernels_(kernels),
        conv_(conv),
        layer_(layer),
        y_(y),
        panels_(panel_count(kernels.base, layer)),
        on_tiles_(!conv.winograd && prefers_tiles(kernels.base, layer, conv.geometry.out.w)),
        stored_input_(on_tiles_ && multiplies_bfloat16(kernels.base) && !conv.has_prologue &&
                      conv.x.is_bfloat16_nhwc()),
        small_weights_(weight_bytes(layer) <= level2_cache_bytes() / 4),
        direct_input_(!conv.has_prologue && conv.x.is_band_for(conv.geometry.kernel.w) &&
                      !conv.geometry.padding.any()),
        direct_output_(y.type == StorageType::float32),
        slices_(conv.geometry.batch, conv.geometry.out.h, rows_in_cache(), conv.winograd ? 2 : 1,
                shares_panels() ? 1 : Slices::kForThreads),
        panel_parts_(shares_panels() ? panel_parts(slices_.count(), panels_) : 1) {}

  const Slices& slices() const { return slices_; }
  // Large weights are read less often by few large slices; the panels are then work for threads.
  int64_t units() const { return slices_.count() * panel_parts_; }

  // Adds to the moments of each unit's slice, of its channels.
  void run(Range units, std::vector<Moments>& moments) const {
    ConvLayer layer = layer_;
    std::optional<SplitPanels> kept =
        kept_panels(kernels_.base, layer, conv_.geometry.out.w, units.size() / panel_parts_,
                    thread_scratch().kept_panels[0]);
    if (kept.has_value()) layer.split_panels = &*kept;
    for (int64_t unit = units.begin; unit < units.end;) {
      const int64_t slice = unit / panel_parts_;
      const int64_t end = std::min(units.end, (slice + 1) * panel_parts_);
      const Range panels{even_range(panels_, panel_parts_, unit % panel_parts_).begin,
                         even_range(panels_, panel_parts_, (end - 1) % panel_parts_).end};
      run_slice(layer, slice, panels, moments[static_cast<size_t>(slice)]);
      unit = end;
    }
  }

 private:
  int64_t rows_in_cache() const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t input = g.stride.h * g.padded_width() * g.in_channels;
    const int64_t output = g.out.w * g.out_channels;
    // As the convolution reads it, and the next slice's as it comes.
    int64_t floats = (direct_input_ ? 1 : 2) * input;
    if (fetches_output() || !direct_output_) floats += output;
    if (fetches_output()) floats += output;
    // Large weights are split anew for each slice: what is read once need not stay.
    const int64_t bytes = level2_cache_bytes() / (on_tiles_ && !small_weights_ ? 1 : 2);
    const int64_t rows = bytes / (floats * static_cast<int64_t>(sizeof(float)));
    return on_tiles_ ? std::min(rows, split_rows_in_cache(kernels_.base, layer_, g.out.w)) : rows;
  }

  bool shares_panels() const { return !small_weights_ && !conv_.winograd; }
  bool fetches_output() const { return small_weights_ && direct_output_ && !conv_.winograd; }

  void run_slice(const ConvLayer& layer, int64_t i, Range panels, Moments& moments) const {
    const ConvGeometry& g = conv_.geometry;
    const Slices::Slice slice = slices_[i];
    ConvBand band;
    band.rows = slice.rows;
    band.pixels = g.out.w;
    if (stored_input_) {
      band.input16 =
          bfloat16_rows(conv_.x, g, slice.image, slice.row, slice.rows, thread_scratch().input);
    } else {
      band.input = input_band(slice);
    }
    const OutputRows output(kernels_.base, y_, slice.image, slice.row, slice.rows);
    band.output = output.band();
    if (layer.header.layout != PackedLayout::igemm) {
      run_whole(layer, band, i, panels, moments);
    } else if (on_tiles_) {
      run_tiles(layer, band, i, panels, moments);
    } else {
      run_panels(band, i, panels, moments);
    }
    output.store(panel_channels(kernels_.base, layer_, panels));
  }

  void run_whole(ConvLayer layer, const ConvBand& band, int64_t slice, Range panels,
                 Moments& moments) const {
    layer.upcoming = upcoming_rows(slice + 1);
    conv_rows(kernels_.base, layer, band, panels);
    add_moments(band, panels, moments);
  }

  // The input is split for all panels at once.
  void run_tiles(ConvLayer layer, const ConvBand& band, int64_t slice, Range panels,
                 Moments& moments) const {
    const std::function<void(int64_t)> finished = [&](int64_t panel) {
      add_moments(band, {panel, panel + 1}, moments);
    };
    layer.finished = &finished;
    layer.upcoming = upcoming_rows(slice + 1);
    conv_rows(kernels_.base, layer, band, panels);
  }

  void run_panels(const ConvBand& band, int64_t slice, Range panels, Moments& moments) const {
    const Upcoming upcoming = upcoming_rows(slice + 1);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      run_panel(band, upcoming, panel, moments);
    }
  }

  void run_panel(const ConvBand& band, const Upcoming& upcoming, int64_t panel,
                 Moments& moments) const {
    ConvLayer layer = layer_;
    for (const FloatSpan& span : upcoming.part(panels_, panel).spans) layer.upcoming.add(span);
    if (panel + 1 < panels_) layer.upcoming.add(panel_floats(kernels_.base, layer, panel + 1));
    conv_rows(kernels_.base, layer, band, {panel, panel + 1});
    add_moments(band, {panel, panel + 1}, moments);
  }

  void add_moments(const ConvBand& band, Range panels, Moments& moments) const {
    const Range channels = panel_channels(kernels_.base, layer_, panels);
    Band output = band.output;
    output.data += channels.begin;
    moments.add(kernels_, output, band.rows, band.pixels, channels);
  }

  // What a slice reads and writes; nothing beyond the last.
  Upcoming upcoming_rows(int64_t slice) const {
    Upcoming upcoming;
    if (slice >= slices_.count()) return upcoming;
    const ConvGeometry& g = conv_.geometry;
    const Slices::Slice next = slices_[slice];
    const int64_t row = std::max<int64_t>(0, next.row * g.stride.h - g.padding.top);
    upcoming.add_rows(conv_.x, next.image, row, row + g.input_rows(next.rows));
    if (fetches_output()) upcoming.add_rows(y_, next.image, next.row, next.row + next.rows);
    return upcoming;
  }

  Band input_band(const Slices::Slice& slice) const {
    const ConvGeometry& g = conv_.geometry;
    if (direct_input_) return direct_band(conv_.x, slice.image, slice.row * g.stride.h);
    const PaddedRows what = padded_rows(g, slice.image, slice.row, slice.rows);
    const int64_t floats = band_floats(what.rows * g.padded_width(), g.in_channels);
    return load_activated(kernels_, conv_, what, {0, g.in_channels},
                          thread_scratch().input.floats(floats));
  }

  const Kernels& kernels_;
  const TrainingConv& conv_;
  const ConvLayer& layer_;
  const Image& y_;
  const int64_t panels_;
  const bool on_tiles_;
  const bool stored_input_;
  const bool small_weights_;  // which leave the cache room
  const bool direct_input_;
  const bool direct_output_;
  const Slices slices_;
  const int64_t panel_parts_;
};

// Convolves all slices, each with statistics of its own.
std::vector<Moments> run_slices(const Kernels& kernels, const TrainingConv& conv,
                                const ConvLayer& layer, const Image& y) {
  const SliceRunner runner(kernels, conv, layer, y);
  const Slices& slices = runner.slices();
  std::vector<Moments> parts(static_cast<size_t>(slices.count()),
                             Moments(conv.geometry.out_channels));
  const int64_t threads = std::min(thread_count(), runner.units());
  parallel_parts(threads, [&](int64_t i) {
    const ConvLayer mine = arranged(kernels.base, layer, {0, panel_count(kernels.base, layer)});
    SliceRunner(kernels, conv, mine, y).run(even_range(runner.units(), threads, i), parts);
  });
  for (int64_t i = 0; i < slices.count(); ++i) {
    parts[static_cast<size_t>(i)].count(slices[i].rows * conv.geometry.out.w);
  }
  return parts;
}

// The same by Winograd, for some images; adds to the statistics.
void run_batch(const Kernels& kernels, const TrainingConv& conv, const ConvLayer& layer,
               const Image& y, Range images, std::vector<Moments>& parts) {
  const ConvGeometry& g = conv.geometry;
  const Range channels{0, g.out_channels};
  const TileBuffer input(images.size(), g.out, g.in_channels),
      products(images.size(), g.out, g.out_channels);
  const Slices slices = tile_slices(images.size(), g.out, g.padded_width() * g.in_channels);
  parallel_parts(slices.count(), [&](int64_t i) {
    const Slices::Slice slice = slices[i];
    const PaddedRows what = padded_rows(g, images.begin + slice.image, slice.row, slice.rows);
    const int64_t floats = band_floats(what.rows * g.padded_width(), g.in_channels);
    const Band band = load_activated(kernels, conv, what, {0, g.in_channels},
                                     thread_scratch().input.floats(floats));
    kernels.base.winograd_input(input.of(slice), band.data, band.row_stride, band.pixel_stride,
                                what.rows, g.padded_width());
  });
  multiply_tiles(kernels.base, layer, input.all(), products.all());
  const size_t before = parts.size();
  parts.resize(before + static_cast<size_t>(slices.count()), Moments(g.out_channels));
  parallel_parts(slices.count(), [&](int64_t i) {
    const Slices::Slice slice = slices[i];
    const OutputRows rows(kernels.base, y, images.begin + slice.image, slice.row, slice.rows);
    ConvBand band;
    band.output = rows.band();
    band.rows = slice.rows;
    band.pixels = g.out.w;
    winograd_outputs(kernels.base, layer, products.of(slice), band, channels);
    Moments& moments = parts[before + static_cast<size_t>(i)];
    moments.add(kernels, band.output, band.rows, band.pixels, channels);
    moments.count(band.rows * band.pixels);
    rows.store(channels);
  });
}

std::vector<Moments> run_batches(const Kernels& kernels, const TrainingConv& conv,
                                 const ConvLayer& layer, const Image& y) {
  const ConvGeometry& g = conv.geometry;
  std::vector<Moments> parts;
  for_each_winograd_batch(g.batch, g.out, g.in_channels + g.out_channels,
                          [&](Range images) { run_batch(kernels, conv, layer, y, images, parts); });
  return parts;
}

// Convolves, and merges the slices' statistics in their order.
Moments run(const Kernels& kernels, const TrainingConv& conv, const Image& y) {
  const ConvGeometry& g = conv.geometry;
  ConvLayer layer;
  const Taps rows = all_taps(g.kernel.h), cols = all_taps(g.kernel.w);
  layer.header = header_of(conv.weight, false, rows, cols, conv.winograd);
  const PooledFloats packed(layer.header.payload_floats());
  pack_weight(kernels.base, conv.weight, false, rows, cols, packed.data(), conv.winograd);
  const std::vector<float> no_shift(static_cast<size_t>(g.out_channels), 0.0F);
  layer.weights = packed.data();
  layer.shift = no_shift.data();
  layer.stride = g.stride;
  layer.dilation = g.dilation;
  const bool batches = conv.winograd && trains_in_winograd_batches(conv.weight);
  std::vector<Moments> parts =
      batches ? run_batches(kernels, conv, layer, y) : run_slices(kernels, conv, layer, y);
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
    const std::vector<int64_t>& dilation, int64_t groups, const std::string& algorithm) {
  TrainingConv conv({x, in_mean, in_scale, in_bias, in_act, in_act_slope, weight, stride, padding,
                     dilation, groups, algorithm},
                    kOp);
  ConvGeometry& g = conv.geometry;
  Tensor y = empty_nhwc(g.batch, g.out_channels, g.out, x.scalar_type(), x);
  Moments moments(g.out_channels);
  if (g.batch > 0) {
    Image out = image_of(y);
    join_images(g, {&conv.x, &out});
    moments = run(selected_kernels(conv.x.type), conv, out);
  }
  return {y, float_tensor(moments.mean(), x), float_tensor(moments.m2(), x)};
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("conv_stats", TORCH_BOX(&fastres::cpu::conv_stats));
}

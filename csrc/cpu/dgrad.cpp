#include "dgrad.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include "cache.h"
#include "conv_rows.h"
#include "scratch.h"

namespace fastres::cpu {
namespace {

// Along one axis, the input positions phase, phase + stride, ... all receive the same taps of the
// kernel. Input position phase + stride * j is the sum over t of tap taps[t] times the gradient at
// output position first + j + t * step: a convolution with stride 1.
struct PhaseAxis {
  int64_t phase = 0;
  Taps taps;
  int64_t first = 0;
  int64_t step = 1;

  // Output positions that input positions [begin, end) of this phase read.
  Range reads(int64_t begin, int64_t end) const {
    return {first + begin, first + end + (static_cast<int64_t>(taps.size()) - 1) * step};
  }
};

struct Axis {
  int64_t kernel, stride, dilation, padding_before;
};

PhaseAxis phase_axis(const Axis& axis, int64_t phase) {
  PhaseAxis result;
  result.phase = phase;
  result.step = axis.dilation / std::gcd(axis.stride, axis.dilation);
  for (int64_t tap = axis.kernel - 1; tap >= 0; --tap) {
    const int64_t offset = phase + axis.padding_before - tap * axis.dilation;
    if (offset % axis.stride != 0) continue;
    if (result.taps.empty()) result.first = offset / axis.stride;
    result.taps.push_back(tap);
  }
  return result;
}

int64_t phase_count(int64_t size, int64_t phase, int64_t stride) {
  return size > phase ? (size - phase - 1) / stride + 1 : 0;
}

// One of stride.h * stride.w convolutions of the output's gradient.
struct Phase {
  PhaseAxis h, w;
  ConvLayer layer;
  bool empty() const { return h.taps.empty() || w.taps.empty(); }
};

class InputGradient {
 public:
  InputGradient(const Kernels& kernels, const TrainingConv& conv, const OutputGradient& gradient,
                const Image& grad_x)
      : kernels_(kernels),
        conv_(conv),
        gradient_(gradient),
        grad_x_(grad_x),
        no_shift_(static_cast<size_t>(conv.geometry.in_channels), 0.0F),
        direct_output_(grad_x.type == StorageType::float32) {
    make_phases();
  }

  InputGradientSums run() const {
    const ConvGeometry& g = conv_.geometry;
    const Slices slices(g.batch, g.in.h, rows_in_cache(), g.stride.h);
    std::vector<InputGradientSums> parts(
        static_cast<size_t>(slices.count()),
        InputGradientSums{Totals(g.in_channels), Totals(g.in_channels)});
    parallel_parts(slices.count(),
                   [&](int64_t i) { run_slice(slices[i], parts[static_cast<size_t>(i)]); });
    for (size_t i = 1; i < parts.size(); ++i) {
      parts[0].grad.add(parts[i].grad);
      parts[0].grad_centred.add(parts[i].grad_centred);
    }
    return std::move(parts[0]);
  }

 private:
  void make_phases() {
    const ConvGeometry& g = conv_.geometry;
    int64_t floats = 0;
    for (int64_t h = 0; h < std::min(g.stride.h, g.in.h); ++h) {
      for (int64_t w = 0; w < std::min(g.stride.w, g.in.w); ++w) {
        Phase phase;
        phase.h = phase_axis({g.kernel.h, g.stride.h, g.dilation.h, g.padding.top}, h);
        phase.w = phase_axis({g.kernel.w, g.stride.w, g.dilation.w, g.padding.left}, w);
        phase.layer.header = header_of(conv_.weight, true, phase.h.taps, phase.w.taps);
        phase.layer.shift = no_shift_.data();
        phase.layer.stride = {1, 1};
        phase.layer.dilation = {phase.h.step, phase.w.step};
        if (!phase.empty()) {
          floats += phase.layer.header.payload_floats();
          columns_ = hull(columns_, phase.w.reads(0, phase_count(g.in.w, w, g.stride.w)));
        }
        phases_.push_back(std::move(phase));
      }
    }
    packed_ = std::make_unique<PooledFloats>(std::max<int64_t>(1, floats));
    float* at = packed_->data();
    for (Phase& phase : phases_) {
      if (phase.empty()) continue;
      pack_weight(kernels_.base, conv_.weight, true, phase.h.taps, phase.w.taps, at);
      phase.layer.weights = at;
      at += phase.layer.header.payload_floats();
    }
  }

  static Range hull(Range a, Range b) {
    if (a.size() <= 0) return b;
    return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
  }

  int64_t rows_in_cache() const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t floats = columns_.size() * g.out_channels / g.stride.h + g.in.w * g.in_channels;
    return level2_cache_bytes() / 2 / (floats * static_cast<int64_t>(sizeof(float)));
  }

  Range phase_rows(const Phase& phase, const Slices::Slice& slice) const {
    const int64_t stride = conv_.geometry.stride.h;
    return {slice.row / stride, phase_count(slice.row + slice.rows, phase.h.phase, stride)};
  }

  void run_slice(const Slices::Slice& slice, InputGradientSums& sums) const {
    const ConvGeometry& g = conv_.geometry;
    Range rows{0, 0};
    for (const Phase& phase : phases_) {
      const Range mine = phase_rows(phase, slice);
      if (!phase.empty() && mine.size() > 0) rows = hull(rows, phase.h.reads(mine.begin, mine.end));
    }
    const Band input = gradient_band(slice.image, rows);
    const Band output = output_band(slice);
    for (const Phase& phase : phases_) {
      const Range mine = phase_rows(phase, slice);
      if (mine.size() > 0) run_phase(phase, mine, slice, input, rows, output);
    }
    if (conv_.has_prologue) finish(slice, output, sums);
    if (!direct_output_) {
      store_band(kernels_.base, output, grad_x_, slice.image, slice.row, slice.rows, 0,
                 g.in_channels);
    }
  }

  void run_phase(const Phase& phase, Range rows, const Slices::Slice& slice, const Band& input,
                 Range input_rows, const Band& output) const {
    const ConvGeometry& g = conv_.geometry;
    ConvBand band;
    band.rows = rows.size();
    band.pixels = phase_count(g.in.w, phase.w.phase, g.stride.w);
    band.output.row_stride = output.row_stride * g.stride.h;
    band.output.pixel_stride = output.pixel_stride * g.stride.w;
    band.output.data = output.data +
                       (rows.begin * g.stride.h + phase.h.phase - slice.row) * output.row_stride +
                       phase.w.phase * output.pixel_stride;
    if (phase.empty()) return clear(band);
    band.input = input;
    band.input.data += (phase.h.first + rows.begin - input_rows.begin) * input.row_stride +
                       (phase.w.first - columns_.begin) * input.pixel_stride;
    conv_rows(kernels_.base, phase.layer, band, {0, panel_count(kernels_.base, phase.layer)});
  }

  // Input pixels that no tap of the kernel reads.
  void clear(const ConvBand& band) const {
    for (int64_t row = 0; row < band.rows; ++row) {
      for (int64_t pixel = 0; pixel < band.pixels; ++pixel) {
        std::fill_n(
            band.output.data + row * band.output.row_stride + pixel * band.output.pixel_stride,
            conv_.geometry.in_channels, 0.0F);
      }
    }
  }

  // The output's gradient in those rows and in the columns that are read, zero outside.
  Band gradient_band(int64_t n, Range rows) const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t channels = g.out_channels;
    const Range inside{std::max<int64_t>(0, columns_.begin), std::min(g.out.w, columns_.end)};
    const bool whole =
        columns_.begin == 0 && columns_.end == g.out.w && rows.begin >= 0 && rows.end <= g.out.h;
    if (whole && gradient_.direct()) {
      const Image& image = gradient_.image();
      return {reinterpret_cast<float*>(image.at(n, rows.begin, 0)), image.stride_h, image.stride_w};
    }
    const int64_t row_floats = std::max<int64_t>(0, columns_.size()) * channels;
    float* target = thread_scratch().input.floats(rows.size() * row_floats);
    float* scratch = thread_scratch().residual.floats(gradient_.scratch_floats(channels));
    for (int64_t i = 0; i < rows.size(); ++i) {
      float* row = target + i * row_floats;
      const int64_t h = rows.begin + i;
      if (h < 0 || h >= g.out.h || inside.size() <= 0) {
        std::fill_n(row, row_floats, 0.0F);
        continue;
      }
      float* begin = row + (inside.begin - columns_.begin) * channels;
      float* end = begin + inside.size() * channels;
      std::fill(row, begin, 0.0F);
      gradient_.load(kernels_, {n, h, inside, {0, channels}}, {begin, channels}, scratch);
      std::fill(end, row + row_floats, 0.0F);
    }
    return {target, row_floats, channels};
  }

  Band output_band(const Slices::Slice& slice) const {
    if (direct_output_) {
      return {reinterpret_cast<float*>(grad_x_.at(slice.image, slice.row, 0)), grad_x_.stride_h,
              grad_x_.stride_w};
    }
    const int64_t row_floats = grad_x_.width * grad_x_.channels;
    return {thread_scratch().output.floats(slice.rows * row_floats), row_floats, grad_x_.channels};
  }

  // Through the activation and the affine, in place, while the rows are in the cache.
  void finish(const Slices::Slice& slice, const Band& output, InputGradientSums& sums) const {
    const int64_t channels = conv_.geometry.in_channels;
    const int64_t row_floats = conv_.geometry.in.w * channels;
    float* scratch = thread_scratch().inner1.floats(row_floats + 2 * channels);
    float* run_sums = scratch + row_floats;
    for (int64_t i = 0; i < slice.rows; ++i) {
      const ConstPixels x =
          row_pixels(kernels_.base, conv_.x, slice.image, slice.row + i, {0, channels}, scratch);
      float* row = output.data + i * output.row_stride;
      short_runs(conv_.geometry.in.w, [&](int64_t first, int64_t pixels) {
        std::fill_n(run_sums, 2 * channels, 0.0F);
        float* at = row + first * output.pixel_stride;
        const ConstPixels grad{at, output.pixel_stride};
        kernels_.training.affine_act_backward(
            conv_.prologue, grad, {x.data + first * x.stride, x.stride}, {},
            {at, output.pixel_stride}, {}, {run_sums, run_sums + channels, nullptr}, pixels,
            channels);
        sums.grad.add(run_sums);
        sums.grad_centred.add(run_sums + channels);
      });
    }
  }

  const Kernels& kernels_;
  const TrainingConv& conv_;
  const OutputGradient& gradient_;
  const Image& grad_x_;
  const std::vector<float> no_shift_;
  const bool direct_output_;
  std::vector<Phase> phases_;
  std::unique_ptr<PooledFloats> packed_;
  Range columns_{0, 0};  // of the output, that the phases read
};

}  // namespace

InputGradientSums run_dgrad(const Kernels& kernels, TrainingConv conv, OutputGradient gradient,
                            Image grad_x) {
  join_images(conv.geometry, {&conv.x, &gradient.grad(), &gradient.y(), &grad_x});
  return InputGradient(kernels, conv, gradient, grad_x).run();
}

}  // namespace fastres::cpu

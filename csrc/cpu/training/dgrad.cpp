#include "dgrad.h"

#include <algorithm>
#include <numeric>

#include "../convolution/conv_rows.h"
#include "../convolution/panels.h"
#include "../runtime/cache.h"
#include "../runtime/scratch.h"

namespace fastres::cpu {
namespace {

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

Range hull(Range a, Range b) {
  if (a.size() <= 0) return b;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

}  // namespace

InputGradient::InputGradient(const Kernels& kernels, const TrainingConv& conv,
                             const InputBackward& input)
    : kernels_(kernels),
      conv_(conv),
      input_(input),
      grad_x_(input.grad_x),
      no_shift_(static_cast<size_t>(conv.geometry.in_channels), 0.0F) {
  make_phases();
}

void InputGradient::make_phases() {
  const ConvGeometry& g = conv_.geometry;
  int64_t floats = 0;
  for (int64_t h = 0; h < std::min(g.stride.h, g.in.h); ++h) {
    for (int64_t w = 0; w < std::min(g.stride.w, g.in.w); ++w) {
      Phase phase;
      phase.h = phase_axis({g.kernel.h, g.stride.h, g.dilation.h, g.padding.top}, h);
      phase.w = phase_axis({g.kernel.w, g.stride.w, g.dilation.w, g.padding.left}, w);
      phase.layer.header =
          header_of(conv_.weight, true, phase.h.taps, phase.w.taps, conv_.winograd);
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
  pack_weights(floats);
}

void InputGradient::pack_weights(int64_t floats) {
  packed_ = std::make_unique<PooledFloats>(std::max<int64_t>(1, floats));
  float* at = packed_->data();
  for (Phase& phase : phases_) {
    if (phase.empty()) continue;
    pack_weight(kernels_.base, conv_.weight, true, phase.h.taps, phase.w.taps, at, conv_.winograd);
    phase.layer.weights = at;
    at += phase.layer.header.payload_floats();
  }
}

Range InputGradient::phase_rows(const Phase& phase, const Slices::Slice& slice) const {
  const int64_t stride = conv_.geometry.stride.h;
  return {slice.row / stride, phase_count(slice.row + slice.rows, phase.h.phase, stride)};
}

Range InputGradient::gradient_rows(const Slices::Slice& slice) const {
  Range rows{0, 0};
  for (const Phase& phase : phases_) {
    const Range mine = phase_rows(phase, slice);
    if (!phase.empty() && mine.size() > 0) rows = hull(rows, phase.h.reads(mine.begin, mine.end));
  }
  return rows;
}

void InputGradient::run_slice(const Slices::Slice& slice, const Slices::Slice* next,
                              const Band& gradient, Upcoming upcoming, KeptPanels& kept,
                              InputGradientSums& sums, const Band& activated) const {
  const OutputRows target(kernels_.base, grad_x_, slice.image, slice.row, slice.rows);
  convolve(slice, next, gradient, upcoming, kept, target.band());
  finish(slice, target.band(), sums, activated);
  target.store({0, conv_.geometry.in_channels});
}

void InputGradient::convolve(const Slices::Slice& slice, const Slices::Slice* next,
                             const Band& gradient, Upcoming upcoming, KeptPanels& kept,
                             const Band& output) const {
  const bool small_slices = !splits_often();
  for (const Image* image : sources().all()) {
    if (image != nullptr && small_slices) {
      upcoming.add_rows(*image, slice.image, slice.row, slice.row + slice.rows);
    }
  }
  if (next != nullptr) {
    upcoming.add_rows(grad_x_, next->image, next->row, next->row + next->rows);
  }
  for (size_t i = 0; i < phases_.size(); ++i) {
    if (phase_rows(phases_[i], slice).size() > 0) {
      run_phase(i, slice, gradient, upcoming, kept, output);
    }
    upcoming = {};
  }
}

bool InputGradient::on_tiles() const {
  const Phase& phase = phases_.front();
  const int64_t pixels = phase_count(conv_.geometry.in.w, phase.w.phase, conv_.geometry.stride.w);
  return !phase.empty() && prefers_tiles(kernels_.base, phase.layer, pixels);
}

bool InputGradient::splits_often() const {
  return on_tiles() && !fits_kept_panels(kernels_.base, phases_.front().layer);
}

InputGradient::KeptPanels InputGradient::kept_panels(int64_t slices) const {
  KeptPanels kept;
  for (size_t i = 0; i < std::min(kept.size(), phases_.size()); ++i) {
    const Phase& phase = phases_[i];
    if (phase.empty()) continue;
    const int64_t pixels = phase_count(conv_.geometry.in.w, phase.w.phase, conv_.geometry.stride.w);
    kept[i] = cpu::kept_panels(kernels_.base, phase.layer, pixels, slices,
                               thread_scratch().kept_panels[i]);
  }
  return kept;
}

void InputGradient::run_phase(size_t i, const Slices::Slice& slice, const Band& gradient,
                              const Upcoming& upcoming, KeptPanels& kept,
                              const Band& output) const {
  const Phase& phase = phases_[i];
  const ConvGeometry& g = conv_.geometry;
  const Range rows = phase_rows(phase, slice);
  ConvBand band;
  band.rows = rows.size();
  band.pixels = phase_count(g.in.w, phase.w.phase, g.stride.w);
  band.output.row_stride = output.row_stride * g.stride.h;
  band.output.pixel_stride = output.pixel_stride * g.stride.w;
  band.output.data = output.data +
                     (rows.begin * g.stride.h + phase.h.phase - slice.row) * output.row_stride +
                     phase.w.phase * output.pixel_stride;
  if (phase.empty()) return clear(band);
  band.input = gradient;
  band.input.data +=
      (phase.h.first + rows.begin - gradient_rows(slice).begin) * gradient.row_stride +
      (phase.w.first - columns_.begin) * gradient.pixel_stride;
  ConvLayer layer = phase.layer;
  layer.upcoming = upcoming;
  if (i < kept.size() && kept[i].has_value()) layer.split_panels = &*kept[i];
  conv_rows(kernels_.base, layer, band, {0, panel_count(kernels_.base, layer)});
}

// Input pixels that no tap of the kernel reads.
void InputGradient::clear(const ConvBand& band) const {
  for (int64_t row = 0; row < band.rows; ++row) {
    for (int64_t pixel = 0; pixel < band.pixels; ++pixel) {
      std::fill_n(
          band.output.data + row * band.output.row_stride + pixel * band.output.pixel_stride,
          conv_.geometry.in_channels, 0.0F);
    }
  }
}

// While the rows are in the cache.
void InputGradient::finish(const Slices::Slice& slice, const Band& output, InputGradientSums& sums,
                           const Band& activated) const {
  const Sources from = sources();
  const std::array<const Image*, 4> images = from.all();
  const int64_t width = grad_x_.width, channels = grad_x_.channels;
  const auto joined = [&](ptrdiff_t row, ptrdiff_t pixel) { return row == width * pixel; };
  // Rows that follow each other are one long row: fewer, longer runs.
  const bool one_row =
      joined(output.row_stride, output.pixel_stride) && !conv_.geometry.padding.any() &&
      std::all_of(images.begin(), images.end(), [&](const Image* image) {
        return image == nullptr ||
               (image->is_float32_nhwc() && joined(image->stride_h, image->stride_w));
      });
  const int64_t pixels = one_row ? slice.rows * width : width;
  const bool computes = from.x == &conv_.x;  // the activated input
  float* scratch = thread_scratch().inner1.floats(std::ssize(images) * width * channels);
  for (int64_t i = 0; i < (one_row ? 1 : slice.rows); ++i) {
    const auto row_of = [&](const Image* image, int64_t place) {
      if (image == nullptr) return ConstPixels{};
      return row_pixels(kernels_.base, *image, slice.image, slice.row + i, {0, channels},
                        scratch + place * width * channels);
    };
    const Pixels grad{output.data + i * output.row_stride, output.pixel_stride};
    const AffineActInputs row{{grad.data, grad.stride},
                              row_of(from.grad_in, 0),
                              row_of(from.x, 1),
                              row_of(from.residual, 2),
                              row_of(from.result, 3)};
    float* out =
        computes && activated.data != nullptr ? activated.data + i * activated.row_stride : nullptr;
    if (from.x != nullptr) {
      finish_row(row, grad, {out, activated.pixel_stride}, pixels, sums);
    } else if (from.grad_in != nullptr) {
      const AffineAct sum{conv_.identity.identity(), conv_.identity.identity()};
      kernels_.training.affine_act(sum, row.grad, row.grad_in, grad, pixels, channels);
    }
  }
  if (!computes && activated.data != nullptr) copy_activated(slice, activated);
}

// Neither x nor sums where nothing was applied to the input. A ReLU's result says as much as what
// it was given, and the weight's gradient needs it either way.
InputGradient::Sources InputGradient::sources() const {
  const auto given = [](const Image& image) { return image.data != nullptr ? &image : nullptr; };
  const ActivatedBefore& before = input_.before;
  Sources from{};
  from.grad_in = given(input_.grad_in);
  if (!before.given()) {
    from.x = conv_.has_prologue ? &conv_.x : nullptr;
    return from;
  }
  from.x = &before.y;
  if (before.f.act == Activation::relu) {
    from.result = &conv_.x;
  } else {
    from.residual = given(before.residual);
  }
  return from;
}

void InputGradient::copy_activated(const Slices::Slice& slice, const Band& activated) const {
  const Image& x = conv_.x;
  float* scratch = thread_scratch().inner1.floats(x.width * x.channels);
  for (int64_t i = 0; i < slice.rows; ++i) {
    const ConstPixels row =
        row_pixels(kernels_.base, x, slice.image, slice.row + i, {0, x.channels}, scratch);
    float* to = activated.data + i * activated.row_stride;
    for (int64_t pixel = 0; pixel < x.width; ++pixel) {
      std::copy_n(row.data + pixel * row.stride, x.channels, to + pixel * activated.pixel_stride);
    }
  }
}

void InputGradient::finish_row(const AffineActInputs& row, Pixels grad_x, Pixels activated,
                               int64_t pixels, InputGradientSums& sums) const {
  const int64_t channels = conv_.geometry.in_channels;
  const bool before = input_.before.given();
  const AffineAct& f = before ? input_.before.f : conv_.prologue;
  float* run_sums = thread_scratch().residual.floats(3 * channels);
  short_runs(pixels, [&](int64_t first, int64_t count) {
    std::fill_n(run_sums, 3 * channels, 0.0F);
    const auto from = [&](auto p) {
      if (p.data != nullptr) p.data += first * p.stride;
      return p;
    };
    kernels_.training.affine_act_backward(
        f, {from(row.grad), from(row.grad_in), from(row.x), from(row.residual), from(row.result)},
        {from(grad_x), {}, from(activated), before},
        {run_sums, run_sums + channels, run_sums + 2 * channels}, count, channels);
    sums.grad.add(run_sums);
    sums.grad_centred.add(run_sums + channels);
  });
}

namespace {

// Rows of the input whose gradients, and what those are made of, take so many bytes.
int64_t rows_in(int64_t bytes, const TrainingConv& conv, const InputGradient& dgrad) {
  const ConvGeometry& g = conv.geometry;
  const int64_t columns = dgrad.gradient_columns().size();
  const int64_t floats = columns * g.out_channels / g.stride.h + g.in.w * g.in_channels;
  return bytes / (floats * int64_t{sizeof(float)});
}

Slices dgrad_slices(const TrainingConv& conv, const InputGradient& dgrad) {
  // Matrix tiles need the more rows for one splitting of the weights.
  const int64_t rows = rows_in(level2_cache_bytes() / (dgrad.on_tiles() ? 2 : 4), conv, dgrad);
  const ConvGeometry& g = conv.geometry;
  return {g.batch, g.in.h, rows, conv.winograd ? 2 : g.stride.h};
}

// From slice i of [.., end) on, those that are convolved together, beyond what the cache has room
// for where weights are split for each.
int64_t joined_end(const Slices& slices, int64_t i, int64_t end, int64_t rows) {
  const Slices::Slice first = slices[i];
  int64_t next = i + 1;
  while (next < end && slices[next].image == first.image &&
         slices[next].row + slices[next].rows - first.row <= rows) {
    ++next;
  }
  return next;
}

// The output's gradient that a slice reads: where it lies, or formed in scratch memory.
Band gradient_band(const Kernels& kernels, const OutputGradient& gradient, int64_t n, Range rows,
                   Range columns) {
  const Image& image = gradient.image();
  const bool whole = columns.begin == 0 && columns.end == image.width && rows.begin >= 0 &&
                     rows.end <= image.height;
  if (whole && gradient.direct()) return direct_band(image, n, rows.begin);
  const int64_t pixels = rows.size() * std::max<int64_t>(0, columns.size());
  float* target = thread_scratch().inner2.floats(band_floats(pixels, image.channels));
  return gradient.load(kernels, {n, rows, columns, {0, image.channels}}, target);
}

}  // namespace

InputGradientSums run_dgrad(const Kernels& kernels, TrainingConv conv, OutputGradient gradient,
                            InputBackward input) {
  std::vector<Image*> images{&conv.x, &gradient.grad(), &gradient.y()};
  input.append_to(images);
  join_images(conv.geometry, images);
  const InputGradient dgrad(kernels, conv, input);
  const Slices slices = dgrad_slices(conv, dgrad);
  std::vector<InputGradientSums> parts(static_cast<size_t>(slices.count()),
                                       InputGradientSums(conv.geometry.in_channels));
  const int64_t threads = std::min(thread_count(), slices.count());
  const int64_t joined_rows = dgrad.splits_often() ? rows_in(level2_cache_bytes(), conv, dgrad) : 0;
  parallel_parts(threads, [&](int64_t thread) {
    const Range mine = even_range(slices.count(), threads, thread);
    InputGradient::KeptPanels kept = dgrad.kept_panels(mine.size());
    for (int64_t i = mine.begin; i < mine.end;) {
      const int64_t end = joined_end(slices, i, mine.end, joined_rows);
      Slices::Slice slice = slices[i];
      slice.rows = slices[end - 1].row + slices[end - 1].rows - slice.row;
      const Band band = gradient_band(kernels, gradient, slice.image, dgrad.gradient_rows(slice),
                                      dgrad.gradient_columns());
      const OutputRows target(kernels.base, input.grad_x, slice.image, slice.row, slice.rows);
      if (end == mine.end) {
        dgrad.convolve(slice, nullptr, band, {}, kept, target.band());
      } else {
        const Slices::Slice next = slices[end];
        const Upcoming upcoming = gradient.upcoming(next.image, dgrad.gradient_rows(next));
        dgrad.convolve(slice, &next, band, upcoming, kept, target.band());
      }
      for (; i < end; ++i) {
        Band output = target.band();
        output.data += (slices[i].row - slice.row) * output.row_stride;
        dgrad.finish(slices[i], output, parts[static_cast<size_t>(i)], {});
      }
      target.store({0, conv.geometry.in_channels});
    }
  });
  for (size_t i = 1; i < parts.size(); ++i) parts[0].add(parts[i]);
  return std::move(parts[0]);
}

}  // namespace fastres::cpu

#include "fused_backward.h"

#include <algorithm>

#include "../runtime/buffer_pool.h"
#include "../runtime/cache.h"
#include "../runtime/scratch.h"

namespace fastres::cpu {
namespace {

class FusedBackward {
 public:
  FusedBackward(const Kernels& kernels, const TrainingConv& conv, const OutputGradient& gradient,
                const InputBackward& input)
      : kernels_(kernels),
        conv_(conv),
        gradient_(gradient),
        wants_input_(input.grad_x.data != nullptr),
        direct_(reads_input_directly(conv)),
        dgrad_(kernels, conv, input),
        sums_(kernels, conv) {}

  Slices slices() const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t floats = dgrad_.gradient_columns().size() * band_pixel_stride(g.out_channels) +
                           g.padded_width() * band_pixel_stride(g.in_channels) +
                           g.in.w * g.in_channels;
    const int64_t bytes = level2_cache_bytes() / (dgrad_.splits_often() ? 2 : 4);
    const int64_t rows = bytes / (floats * int64_t{sizeof(float)});
    return {g.batch, g.in.h, rows};
  }

  const WeightSums& weight_sums() const { return sums_; }
  InputGradient::KeptPanels kept_panels(int64_t slices) const { return dgrad_.kept_panels(slices); }

  // `weight` receives the slice's part of the weight's gradient; null for none. `next` is the slice
  // that comes after; null for none.
  void run(const Slices::Slice& slice, const Slices::Slice* next, InputGradient::KeptPanels& kept,
           InputGradientSums& input, float* weight) const {
    const Range columns = dgrad_.gradient_columns(), rows = dgrad_.gradient_rows(slice);
    const int64_t out_channels = conv_.geometry.out_channels;
    const int64_t floats = band_floats(rows.size() * columns.size(), out_channels);
    const Band gradient = gradient_.load(kernels_, {slice.image, rows, columns, {0, out_channels}},
                                         thread_scratch().inner2.floats(floats));
    Band activated;
    if (weight != nullptr) {
      activated = direct_ ? direct_band(conv_.x, slice.image, slice.row) : input_band(slice);
    }
    if (wants_input_) {
      Band inside = direct_ ? Band{} : activated;
      if (inside.data != nullptr) {
        inside.data += conv_.geometry.padding.top * inside.row_stride +
                       conv_.geometry.padding.left * inside.pixel_stride;
      }
      dgrad_.run_slice(slice, next, gradient, with_input(slice, next, weight != nullptr), kept,
                       input, inside);
    }
    if (weight == nullptr) return;
    WgradBands bands;
    if (sums_.on_tiles()) bands.upcoming = next_gradient(next);
    bands.input = activated;
    bands.gradient = gradient;
    bands.gradient.data +=
        (slice.row - rows.begin) * gradient.row_stride - columns.begin * gradient.pixel_stride;
    bands.rows = slice.rows;
    bands.pixels = conv_.geometry.out.w;
    sums_.add(bands, sums_.everything(), weight);
  }

 private:
  // What is fetched with the input's gradient: not the next slice's, where there is time for it
  // with the weight's; nor the input, where the slice's end fetches it or nobody reads it.
  Upcoming with_input(const Slices::Slice& slice, const Slices::Slice* next,
                      bool wants_weight) const {
    Upcoming upcoming;
    if (!wants_weight || !sums_.on_tiles()) upcoming = next_gradient(next);
    if (wants_weight && direct_ && !dgrad_.reads_input()) {
      upcoming.add_rows(conv_.x, slice.image, slice.row, slice.row + slice.rows);
    }
    return upcoming;
  }

  Upcoming next_gradient(const Slices::Slice* next) const {
    if (next == nullptr) return {};
    return gradient_.upcoming(next->image, dgrad_.gradient_rows(*next));
  }

  // The slice's padded activated input; without the slice's own rows where the data gradient will
  // fill them in.
  Band input_band(const Slices::Slice& slice) const {
    const ConvGeometry& g = conv_.geometry;
    const Range channels{0, g.in_channels};
    const int64_t rows = g.input_rows(slice.rows);
    float* target =
        thread_scratch().input.floats(band_floats(rows * g.padded_width(), g.in_channels));
    PaddedRows what{slice.image, slice.row - g.padding.top, rows, g.padding.left, g.padding.right};
    if (!wants_input_) return load_activated(kernels_, conv_, what, channels, target);
    Band band{target, g.padded_width() * band_pixel_stride(g.in_channels),
              band_pixel_stride(g.in_channels)};
    what.rows = g.padding.top;
    load_activated(kernels_, conv_, what, channels, target);
    const int64_t done = g.padding.top + slice.rows;
    what.row += done;
    what.rows = rows - done;
    load_activated(kernels_, conv_, what, channels, target + done * band.row_stride);
    clear_borders(band, slice.rows);
    return band;
  }

  // Left and right of the rows that the data gradient fills in.
  void clear_borders(const Band& band, int64_t rows) const {
    const ConvGeometry& g = conv_.geometry;
    for (int64_t i = 0; i < rows; ++i) {
      float* row = band.data + (g.padding.top + i) * band.row_stride;
      std::fill_n(row, g.padding.left * band.pixel_stride, 0.0F);
      std::fill_n(row + (g.padding.left + g.in.w) * band.pixel_stride,
                  g.padding.right * band.pixel_stride, 0.0F);
    }
  }

  const Kernels& kernels_;
  const TrainingConv& conv_;
  const OutputGradient& gradient_;
  const bool wants_input_;
  const bool direct_;  // the weight's gradient reads the input where it lies
  const InputGradient dgrad_;
  const WeightSums sums_;
};

}  // namespace

bool fuses_backward(const TrainingConv& conv) {
  const ConvGeometry& g = conv.geometry;
  const int64_t bytes = g.out_channels * (g.in_channels / g.groups) * g.kernel.h * g.kernel.w *
                        int64_t{sizeof(float)};
  return g.stride.h == 1 && g.stride.w == 1 && g.in.h == g.out.h && g.in.w == g.out.w &&
         bytes <= level2_cache_bytes() / 4;
}

InputGradientSums run_fused_backward(const Kernels& kernels, TrainingConv conv,
                                     OutputGradient gradient, InputBackward input,
                                     const WeightView& grad_weight) {
  std::vector<Image*> images{&conv.x, &gradient.grad(), &gradient.y()};
  input.append_to(images);
  join_images(conv.geometry, images);
  const FusedBackward backward(kernels, conv, gradient, input);
  const Slices slices = backward.slices();
  const int64_t floats = grad_weight.data != nullptr ? backward.weight_sums().floats() : 0;
  const int64_t parts = std::min(thread_count(), slices.count());
  const PooledFloats sums(std::max<int64_t>(1, floats * parts));
  std::vector<InputGradientSums> inputs(static_cast<size_t>(slices.count()),
                                        InputGradientSums(conv.geometry.in_channels));
  parallel_parts(parts, [&](int64_t part) {
    float* weight = floats > 0 ? sums.data() + part * floats : nullptr;
    std::fill_n(weight, floats, 0.0F);
    const Range mine = even_range(slices.count(), parts, part);
    InputGradient::KeptPanels kept = backward.kept_panels(mine.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const Slices::Slice next = slices[std::min(i + 1, mine.end - 1)];
      backward.run(slices[i], i + 1 < mine.end ? &next : nullptr, kept,
                   inputs[static_cast<size_t>(i)], weight);
    }
  });
  if (floats > 0) finish_wgrad(kernels.base, sums.data(), floats, parts, grad_weight);
  for (size_t i = 1; i < inputs.size(); ++i) inputs[0].add(inputs[i]);
  return std::move(inputs[0]);
}

}  // namespace fastres::cpu

#include "split_positions.h"

#include <algorithm>

namespace fastres::cpu {
namespace {

// Whether no tap before leaves the same remainder by the stride.
bool is_new_phase(int64_t tap, int64_t dilation, int64_t stride) {
  for (int64_t before = 0; before < tap; ++before) {
    if ((tap - before) * dilation % stride == 0) return false;
  }
  return true;
}

// Along one axis. (Without a list of them: this is asked for every band.)
int64_t phases_read(int64_t taps, int64_t dilation, int64_t stride) {
  int64_t count = 0;
  for (int64_t tap = 0; tap < taps; ++tap) count += is_new_phase(tap, dilation, stride) ? 1 : 0;
  return count;
}

// The remainders, in order.
std::vector<int64_t> phases_along(int64_t taps, int64_t dilation, int64_t stride) {
  std::vector<int64_t> phases;
  for (int64_t tap = 0; tap < taps; ++tap) {
    if (is_new_phase(tap, dilation, stride)) phases.push_back(tap * dilation % stride);
  }
  std::sort(phases.begin(), phases.end());
  return phases;
}

int64_t index_of(const std::vector<int64_t>& phases, int64_t phase) {
  return std::find(phases.begin(), phases.end(), phase) - phases.begin();
}

}  // namespace

int64_t positions_read(int64_t outputs, int64_t taps, int64_t dilation, int64_t stride,
                       int64_t phase) {
  return ((outputs - 1) * stride + (taps - 1) * dilation - phase) / stride + 1;
}

int64_t phases_read(const TapGrid& t) {
  return phases_read(t.kernel.h, t.dilation.h, t.stride.h) *
         phases_read(t.kernel.w, t.dilation.w, t.stride.w);
}

SplitPositions::SplitPositions(const TapGrid& taps, Extent outputs)
    : geometry_(taps),
      outputs_(outputs),
      row_positions_(positions_read(outputs.w, taps.kernel.w, taps.dilation.w, taps.stride.w, 0)),
      phase_positions_(row_positions_ * positions_read(outputs.h, taps.kernel.h, taps.dilation.h,
                                                       taps.stride.h, 0)) {
  const auto& [kernel, stride, dilation] = geometry_;
  const auto rows = phases_along(kernel.h, dilation.h, stride.h);
  const auto columns = phases_along(kernel.w, dilation.w, stride.w);
  for (const int64_t h : rows) {
    for (const int64_t w : columns) phases_.push_back({h, w});
  }
  for (int64_t r = 0; r < kernel.h; ++r) {
    for (int64_t s = 0; s < kernel.w; ++s) {
      const int64_t h = r * dilation.h, w = s * dilation.w;
      const int64_t phase =
          index_of(rows, h % stride.h) * std::ssize(columns) + index_of(columns, w % stride.w);
      taps_.push_back(phase * phase_positions_ + h / stride.h * row_positions_ + w / stride.w);
    }
  }
}

bool SplitPositions::split(const SplitKernels& kernels, const ConvBand& band, int64_t first,
                           SplitPixels to) const {
  const auto& [kernel, stride, dilation] = geometry_;
  const bool stored = band.input16.data != nullptr;
  const ptrdiff_t row = stored ? band.input16.row_stride : band.input.row_stride;
  const ptrdiff_t pixel = stored ? band.input16.pixel_stride : band.input.pixel_stride;
  to.row_positions = row_positions_;
  to.row_stride = stride.h * row;
  to.pixel_stride = stride.w * pixel;
  bool have_parts = true;
  for (const auto& [h, w] : phases_) {
    const ptrdiff_t offset = first + h * row + w * pixel;
    if (stored) {
      to.input16 = band.input16.data + offset;
    } else {
      to.input = band.input.data + offset;
    }
    to.rows = positions_read(outputs_.h, kernel.h, dilation.h, stride.h, h);
    to.pixels = positions_read(outputs_.w, kernel.w, dilation.w, stride.w, w);
    have_parts = kernels.split_pixels(to) && have_parts;
    to.planes += phase_positions_ * kSplitChannels;
  }
  return have_parts;
}

}  // namespace fastres::cpu

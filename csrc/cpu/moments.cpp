#include "moments.h"

#include <algorithm>

#include "scratch.h"

namespace fastres::cpu {
namespace {

// Where the other part's mean is, and how much its count weighs.
struct Merge {
  double share;   // of the other part in both
  double weight;  // of the squared distance of the means
  Merge(double count, double other)
      : share(other / (count + other)), weight(count * other / (count + other)) {}
};

}  // namespace

void Moments::add(const Kernels& kernels, const Band& band, int64_t rows, int64_t pixels) {
  // Rows that follow each other are one long row: fewer, longer runs.
  const bool joined = band.row_stride == pixels * band.pixel_stride;
  const int64_t lines = joined ? 1 : rows;
  const int64_t length = joined ? rows * pixels : pixels;
  for (int64_t line = 0; line < lines; ++line) {
    short_runs(length, [&](int64_t first, int64_t count) {
      const float* at = band.data + line * band.row_stride + first * band.pixel_stride;
      add_run(kernels, {at, band.pixel_stride}, count);
    });
  }
}

// About the mean of all runs before, one pass is enough: what it loses of a run's own deviation is
// small beside the distance of the means, which counts as well. The first run has its own mean for
// a pivot, so that a variance far smaller than the mean keeps its digits.
void Moments::choose_pivot(const Kernels& kernels, ConstPixels run, int64_t pixels, float* pivot,
                           float* scratch) const {
  const size_t channels = mean_.size();
  if (count_ > 0.0) {
    std::transform(mean_.begin(), mean_.end(), pivot,
                   [](double mean) { return static_cast<float>(mean); });
    return;
  }
  std::fill_n(pivot, channels, 0.0F);
  kernels.training.moments(run, pixels, static_cast<int64_t>(channels), pivot, scratch,
                           scratch + channels);
  for (size_t c = 0; c < channels; ++c) pivot[c] = scratch[c] / static_cast<float>(pixels);
}

void Moments::add_run(const Kernels& kernels, ConstPixels run, int64_t pixels) {
  const size_t channels = mean_.size();
  float* pivot = thread_scratch().residual.floats(static_cast<int64_t>(3 * channels));
  float* deviation = pivot + channels;
  float* square = deviation + channels;
  choose_pivot(kernels, run, pixels, pivot, deviation);
  kernels.training.moments(run, pixels, static_cast<int64_t>(channels), pivot, deviation, square);
  const auto n = static_cast<double>(pixels);
  const Merge merge(count_, n);
  for (size_t c = 0; c < channels; ++c) {
    const double lost = deviation[c] / n;  // from the pivot to the run's mean
    const double distance = pivot[c] + lost - mean_[c];
    m2_[c] += square[c] - lost * deviation[c] + distance * distance * merge.weight;
    mean_[c] += distance * merge.share;
  }
  count_ += n;
}

void Moments::merge(const Moments& other) {
  if (other.count_ == 0.0) return;
  const Merge merge(count_, other.count_);
  for (size_t c = 0; c < mean_.size(); ++c) {
    const double distance = other.mean_[c] - mean_[c];
    m2_[c] += other.m2_[c] + distance * distance * merge.weight;
    mean_[c] += distance * merge.share;
  }
  count_ += other.count_;
}

}  // namespace fastres::cpu

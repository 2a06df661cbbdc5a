#include "moments.h"

#include <algorithm>

#include "../runtime/scratch.h"

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

void Moments::add(const Kernels& kernels, const Band& band, int64_t rows, int64_t pixels,
                  Range channels) {
  // Rows that follow each other are one long row: fewer, longer runs.
  const bool joined = band.row_stride == pixels * band.pixel_stride;
  const int64_t lines = joined ? 1 : rows;
  const int64_t length = joined ? rows * pixels : pixels;
  double before = count_;
  for (int64_t line = 0; line < lines; ++line) {
    short_runs(length, [&](int64_t first, int64_t count) {
      const float* at = band.data + line * band.row_stride + first * band.pixel_stride;
      add_run(kernels, {at, band.pixel_stride}, count, before, channels);
      before += static_cast<double>(count);
    });
  }
}

// About the mean of all runs before, one pass is enough: what it loses of a run's own deviation is
// small beside the distance of the means, which counts as well. The first run has its own mean for
// a pivot, so that a variance far smaller than the mean keeps its digits.
void Moments::choose_pivot(const Kernels& kernels, ConstPixels run, int64_t pixels, double before,
                           Range channels, float* pivot, float* scratch) const {
  const int64_t count = channels.size();
  if (before > 0.0) {
    std::transform(mean_.begin() + channels.begin, mean_.begin() + channels.end, pivot,
                   [](double mean) { return static_cast<float>(mean); });
    return;
  }
  std::fill_n(pivot, count, 0.0F);
  kernels.training.moments(run, pixels, count, pivot, scratch, scratch + count);
  for (int64_t c = 0; c < count; ++c) pivot[c] = scratch[c] / static_cast<float>(pixels);
}

void Moments::add_run(const Kernels& kernels, ConstPixels run, int64_t pixels, double before,
                      Range channels) {
  const int64_t count = channels.size();
  float* pivot = thread_scratch().residual.floats(3 * count);
  float* deviation = pivot + count;
  float* square = deviation + count;
  choose_pivot(kernels, run, pixels, before, channels, pivot, deviation);
  kernels.training.moments(run, pixels, count, pivot, deviation, square);
  const auto n = static_cast<double>(pixels);
  const Merge merge(before, n);
  double* mean = mean_.data() + channels.begin;
  double* m2 = m2_.data() + channels.begin;
  for (int64_t c = 0; c < count; ++c) {
    const double lost = deviation[c] / n;  // from the pivot to the run's mean
    const double distance = pivot[c] + lost - mean[c];
    m2[c] += square[c] - lost * deviation[c] + distance * distance * merge.weight;
    mean[c] += distance * merge.share;
  }
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

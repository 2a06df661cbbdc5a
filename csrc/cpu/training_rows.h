// How the training operators cut a batch into rows, and load them.

#pragma once

#include <algorithm>
#include <vector>

#include "image.h"
#include "parallel.h"
#include "training_kernels.h"

namespace fastres::cpu {

// Both tables of the selected instruction set.
struct Kernels {
  const Microkernels& base;
  const TrainingKernels& training;
};
inline Kernels selected_kernels(StorageType type = StorageType::float32) {
  return {selected_microkernels(type), training_kernels_for(selected_isa())};
}

// Rows of a batch in slices of nearly equal height, none of which crosses an image. They depend on
// the problem and not on the number of threads, so that neither do the sums that are made of them.
class Slices {
 public:
  // At most `rows_in_cache` rows each, a multiple of `step` but for an image's last; `fewest` of
  // them where the rows allow it.
  Slices(int64_t images, int64_t rows, int64_t rows_in_cache, int64_t step = 1,
         int64_t fewest = kForThreads);

  // Enough for a few threads; fewer and larger slices read the weights less often.
  static constexpr int64_t kForThreads = 8;

  struct Slice {
    int64_t image, row, rows;
  };
  int64_t count() const { return images_ * per_image_; }
  Slice operator[](int64_t i) const;

 private:
  int64_t images_;
  int64_t rows_;
  int64_t step_;
  int64_t per_image_;
};

// Channels [channels.begin, channels.end) of row h as adjacent float32 values: where they lie, or
// converted into `scratch`, which has room for them.
ConstPixels row_pixels(const Microkernels& kernels, const Image& image, int64_t n, int64_t h,
                       Range channels, float* scratch);

// Float32 rows of an image that are to be written: where they lie, or in the thread's output
// scratch until they are stored.
class OutputRows {
 public:
  OutputRows(const Microkernels& kernels, const Image& image, int64_t n, int64_t row, int64_t rows);
  const Band& band() const { return band_; }
  void store(Range channels) const;

 private:
  const Microkernels& kernels_;
  const Image& image_;
  const int64_t n_, row_, rows_;
  Band band_;
};

// Per-channel constants of which the caller gave all or none: act(x) is act((x - 0) * 1 + 0).
class AffineConstants {
 public:
  explicit AffineConstants(int64_t channels)
      : zeros_(static_cast<size_t>(channels), 0.0F), ones_(static_cast<size_t>(channels), 1.0F) {}
  Affine identity() const { return {zeros_.data(), ones_.data(), zeros_.data()}; }
  const float* zeros() const { return zeros_.data(); }

 private:
  std::vector<float> zeros_, ones_;
};

// Per-channel sums of many short float32 sums, in double.
class Totals {
 public:
  explicit Totals(int64_t channels) : values_(static_cast<size_t>(channels), 0.0) {}
  void add(const float* sums) {
    for (size_t c = 0; c < values_.size(); ++c) values_[c] += sums[c];
  }
  void add(const Totals& other) {
    for (size_t c = 0; c < values_.size(); ++c) values_[c] += other.values_[c];
  }
  double operator[](int64_t c) const { return values_[static_cast<size_t>(c)]; }

 private:
  std::vector<double> values_;
};

// Pixels after which a float32 sum is added to its total: see kProductsPerSum in igemm.cpp.
constexpr int64_t kPixelsPerSum = 64;

// Calls part(first pixel, pixels) for runs of at most kPixelsPerSum.
template <class Part>
void short_runs(int64_t pixels, const Part& part) {
  for (int64_t first = 0; first < pixels; first += kPixelsPerSum) {
    part(first, std::min(kPixelsPerSum, pixels - first));
  }
}

}  // namespace fastres::cpu

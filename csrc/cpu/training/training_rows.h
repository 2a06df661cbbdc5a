// How the training operators cut a batch into rows, and load them.

#pragma once

#include <algorithm>
#include <vector>

#include "../convolution/image.h"
#include "../convolution/slices.h"
#include "../runtime/parallel.h"
#include "../training_kernels.h"

namespace fastres::cpu {

// Both tables of the selected instruction set.
struct Kernels {
  const Microkernels& base;
  const TrainingKernels& training;
};
inline Kernels selected_kernels(StorageType type = StorageType::float32) {
  return {selected_microkernels(type), training_kernels_for(selected_isa())};
}

// Channels [channels.begin, channels.end) of row h as adjacent float32 values: where they lie, or
// converted into `scratch`, which has room for them.
ConstPixels row_pixels(const Microkernels& kernels, const Image& image, int64_t n, int64_t h,
                       Range channels, float* scratch);

// Per-channel constants of which the caller gave all or none: act(x) is act((x - 0) * 1 + 0).
class AffineConstants {
 public:
  explicit AffineConstants(int64_t channels)
      : zeros_(static_cast<size_t>(channels), 0.0F), ones_(static_cast<size_t>(channels), 1.0F) {}
  Affine identity() const { return {zeros_.data(), ones_.data(), zeros_.data()}; }

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

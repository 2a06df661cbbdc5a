// Mean and variance of a stream of values, merged from those of its parts.

#pragma once

#include <vector>

#include "training_rows.h"

namespace fastres::cpu {

// Per channel (count, mean, M2), M2 the sum of squared deviations from the mean; merged as in Chan,
// Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
// (1979), in double.
class Moments {
 public:
  explicit Moments(int64_t channels)
      : mean_(static_cast<size_t>(channels), 0.0), m2_(static_cast<size_t>(channels), 0.0) {}

  // `channels` of `rows` rows of `pixels` pixels, which the band begins with.
  void add(const Kernels& kernels, const Band& band, int64_t rows, int64_t pixels, Range channels);
  // That many pixels were added of all channels.
  void count(int64_t pixels) { count_ += static_cast<double>(pixels); }
  void merge(const Moments& other);

  const std::vector<double>& mean() const { return mean_; }
  const std::vector<double>& m2() const { return m2_; }

 private:
  // `before` pixels are in the channels' values already.
  void add_run(const Kernels& kernels, ConstPixels run, int64_t pixels, double before,
               Range channels);
  void choose_pivot(const Kernels& kernels, ConstPixels run, int64_t pixels, double before,
                    Range channels, float* pivot, float* scratch) const;

  double count_ = 0.0;  // of all channels
  std::vector<double> mean_, m2_;
};

}  // namespace fastres::cpu

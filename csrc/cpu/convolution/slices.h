// A batch cut into rows, and the rows that are written.

#pragma once

#include "../microkernels.h"
#include "../runtime/parallel.h"
#include "image.h"

namespace fastres::cpu {

// Rows of a batch in slices of nearly equal height, none of which crosses an image. Those that sums
// are made of depend on the problem and not on the number of threads, so that neither do the sums.
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

}  // namespace fastres::cpu

#include "slices.h"

#include <algorithm>

#include "../runtime/scratch.h"

namespace fastres::cpu {
Slices::Slices(int64_t images, int64_t rows, int64_t rows_in_cache, int64_t step, int64_t fewest)
    : images_(images), rows_(rows), step_(step) {
  const int64_t steps = ceil_div(rows, step);
  const int64_t in_cache = std::max<int64_t>(1, rows_in_cache / step);
  const int64_t for_threads = images > 0 ? ceil_div(fewest, images) : 1;
  per_image_ = std::clamp(std::max(ceil_div(steps, in_cache), for_threads), int64_t{1},
                          std::max<int64_t>(1, steps));
}

Slices::Slice Slices::operator[](int64_t i) const {
  const Range steps = even_range(ceil_div(rows_, step_), per_image_, i % per_image_);
  const int64_t row = steps.begin * step_;
  return {i / per_image_, row, std::min(steps.end * step_, rows_) - row};
}

OutputRows::OutputRows(const Microkernels& kernels, const Image& image, int64_t n, int64_t row,
                       int64_t rows)
    : kernels_(kernels), image_(image), n_(n), row_(row), rows_(rows) {
  if (image.type == StorageType::float32) {
    band_ = direct_band(image, n, row);
    return;
  }
  const int64_t row_floats = image.width * image.channels;
  band_ = {thread_scratch().output.floats(rows * row_floats), row_floats, image.channels};
}

void OutputRows::store(Range channels) const {
  if (image_.type == StorageType::float32) return;
  store_band(kernels_, band_, image_, n_, row_, rows_, channels.begin, channels.end);
}

}  // namespace fastres::cpu

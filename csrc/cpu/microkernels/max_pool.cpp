// The largest value of each window, channels innermost.

#include <algorithm>
#include <limits>

#include "kernels.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

// A NaN in either operand, as torch.max_pool2d does: at_least() keeps the one in `v` alone.
inline Vec larger(Vec largest, Vec v) {
  const Vec larger = at_least(v, largest);
  return largest == largest ? larger : largest;
}

}  // namespace

void max_pool(const PoolRow& row) {
  for (int64_t pixel = 0; pixel < row.pixels; ++pixel) {
    const int64_t left = pixel * row.stride_w - row.padding_w;
    const int64_t first = std::max<int64_t>(left, 0);
    const int64_t last = std::min(left + row.kernel_w, row.width);
    float* output = row.output + pixel * row.channels;
    for (int64_t channel = 0; channel < row.channels; channel += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, row.channels - channel);
      Vec largest = Vec{} - std::numeric_limits<float>::infinity();
      for (int64_t r = 0; r < row.rows; ++r) {
        for (int64_t w = first; w < last; ++w) {
          const float* p = row.input + r * row.row_stride + w * row.pixel_stride + channel;
          largest = larger(largest, count == kLanes ? load(p) : load_partial(p, count));
        }
      }
      if (count == kLanes) {
        store(output + channel, largest);
      } else {
        store_partial(output + channel, largest, count);
      }
    }
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

// Max-pooling that remembers where in its window each value was, in a byte, and its gradient.

#include <algorithm>
#include <limits>

#include "training.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

typedef uint8_t ByteVec __attribute__((vector_size(kLanes)));

inline IntVec load_places(const uint8_t* p, int64_t count) {
  ByteVec bytes{};
  std::memcpy(&bytes, p, static_cast<size_t>(count));
  return __builtin_convertvector(bytes, IntVec);
}
inline void store_places(uint8_t* p, IntVec places, int64_t count) {
  const ByteVec bytes = __builtin_convertvector(places, ByteVec);
  std::memcpy(p, &bytes, static_cast<size_t>(count));
}
inline Vec load_lanes(const float* p, int64_t count) {
  return count == kLanes ? load(p) : load_partial(p, count);
}
inline void store_lanes(float* p, Vec v, int64_t count) {
  if (count == kLanes) return store(p, v);
  store_partial(p, v, count);
}

}  // namespace

void max_pool_places(const PlacedPoolRow& placed) {
  const PoolRow& row = placed.row;
  for (int64_t pixel = 0; pixel < row.pixels; ++pixel) {
    const int64_t left = pixel * row.stride_w - row.padding_w;
    const int64_t first = std::max<int64_t>(left, 0);
    const int64_t last = std::min(left + row.kernel_w, row.width);
    for (int64_t channel = 0; channel < row.channels; channel += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, row.channels - channel);
      Vec largest = Vec{} - std::numeric_limits<float>::infinity();
      IntVec place = IntVec{} + static_cast<int>(placed.first_row * row.kernel_w + first - left);
      for (int64_t r = 0; r < row.rows; ++r) {
        for (int64_t w = first; w < last; ++w) {
          const Vec v =
              load_lanes(row.input + r * row.row_stride + w * row.pixel_stride + channel, count);
          // A NaN is taken, and stays unless another comes: as in PyTorch.
          const IntVec taken = (v > largest) | (v != v);
          largest = taken ? v : largest;
          const auto here = static_cast<int>((placed.first_row + r) * row.kernel_w + w - left);
          place = taken ? IntVec{} + here : place;
        }
      }
      const int64_t at = pixel * row.channels + channel;
      store_lanes(row.output + at, largest, count);
      store_places(placed.places + at, place, count);
    }
  }
}

// Sums for each pixel, in the order of the outputs, the gradients of those that took their value
// from it.
void max_pool_gradient(const PoolGradientRow& row) {
  for (int64_t pixel = 0; pixel < row.pixels; ++pixel) {
    const int64_t from_left = pixel + row.padding_w;
    for (int64_t channel = 0; channel < row.channels; channel += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, row.channels - channel);
      Vec sum{};
      for (int64_t r = row.kernel_h - 1; r >= 0; --r) {
        if (row.grads[r] == nullptr) continue;
        for (int64_t s = row.kernel_w - 1; s >= 0; --s) {
          const int64_t start = from_left - s;
          if (start < 0 || start % row.stride_w != 0) continue;
          const int64_t out = start / row.stride_w;
          if (out >= row.out_pixels) continue;
          const int64_t at = out * row.channels + channel;
          const IntVec mine = load_places(row.places[r] + at, count) ==
                              IntVec{} + static_cast<int>(r * row.kernel_w + s);
          sum += mine ? load_lanes(row.grads[r] + at, count) : Vec{};
        }
      }
      store_lanes(row.target + pixel * row.channels + channel, sum, count);
    }
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

// Max-pooling that remembers where in its window each value was, in a byte, and its gradient.

#include <algorithm>
#include <limits>

#include "training.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

typedef uint8_t ByteVec __attribute__((vector_size(kLanes)));
typedef uint16_t ShortVec __attribute__((vector_size(2 * kLanes)));

// Whole vectors apart: with a size that is no constant memcpy would be called.
inline IntVec load_places(const uint8_t* p, int64_t count) {
  ByteVec bytes{};
  if (count == kLanes) {
    std::memcpy(&bytes, p, kLanes);
  } else {
    std::memcpy(&bytes, p, static_cast<size_t>(count));
  }
  // By way of 16 bits: GCC 12 converts 8 to 32 one by one.
  return __builtin_convertvector(__builtin_convertvector(bytes, ShortVec), IntVec);
}
inline void store_places(uint8_t* p, IntVec places, int64_t count) {
  const ByteVec bytes = __builtin_convertvector(places, ByteVec);
  if (count == kLanes) {
    std::memcpy(p, &bytes, kLanes);
  } else {
    std::memcpy(p, &bytes, static_cast<size_t>(count));
  }
}
inline Vec load_lanes(const float* p, int64_t count) {
  return count == kLanes ? load(p) : load_partial(p, count);
}
inline void store_lanes(float* p, Vec v, int64_t count) {
  if (count == kLanes) return store(p, v);
  store_partial(p, v, count);
}

// The outputs whose windows hold a pixel, and which place it has in each.
class Windows {
 public:
  // `last` and `place` are the last output that may hold the pixel, and the pixel's column in it.
  void find(const PoolGradientRow& row, int64_t last, int64_t place) {
    size_ = 0;
    int64_t before = 0;  // outputs before that one, whose windows reach the pixel too
    while (place + (before + 1) * row.stride_w < row.kernel_w) ++before;
    for (int64_t r = row.kernel_h - 1; r >= 0; --r) {
      if (row.grads[r] == nullptr || place >= row.kernel_w) continue;
      for (int64_t i = before; i >= 0; --i) {
        const int64_t out = last - i;
        if (out < 0 || out >= row.out_pixels) continue;
        windows_[size_++] = {row.grads[r] + out * row.channels, row.places[r] + out * row.channels,
                             static_cast<int>(r * row.kernel_w + place + i * row.stride_w)};
      }
    }
  }

  Vec sum(int64_t channel, int64_t count) const {
    Vec sum{};
    for (int i = 0; i < size_; ++i) {
      const Window& window = windows_[i];
      const IntVec mine = load_places(window.places + channel, count) == IntVec{} + window.place;
      sum += mine ? load_lanes(window.grads + channel, count) : Vec{};
    }
    return sum;
  }

 private:
  struct Window {
    const float* grads;
    const uint8_t* places;
    int place;
  };
  Window windows_[kMostPlaces];
  int size_ = 0;
};

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
  Windows windows;
  int64_t last = row.padding_w / row.stride_w, place = row.padding_w % row.stride_w;
  for (int64_t pixel = 0; pixel < row.pixels; ++pixel) {
    windows.find(row, last, place);
    for (int64_t channel = 0; channel < row.channels; channel += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, row.channels - channel);
      const Vec sum = windows.sum(channel, count);
      store_lanes(row.target + pixel * row.channels + channel, sum, count);
    }
    if (++place == row.stride_w) place = 0, ++last;
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

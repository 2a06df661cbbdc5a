// Deviations from a pivot and their squares, summed over a short run of pixels that is in the
// cache.

#include "training.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kUnroll = 4;  // a sum waits for the one before it

template <bool kPartial>
inline void moments_of_vector(const float* y, ptrdiff_t stride, int64_t pixels, int64_t count,
                              const float* pivot, float* deviation, float* square) {
  const auto get = [&](const float* p) { return kPartial ? load_partial(p, count) : load(p); };
  const auto put = [&](float* p, Vec v) {
    if constexpr (kPartial) {
      store_partial(p, v, count);
    } else {
      store(p, v);
    }
  };
  const Vec about = get(pivot);
  Vec first[kUnroll] = {}, second[kUnroll] = {};
  int64_t i = 0;
  for (; i + kUnroll <= pixels; i += kUnroll) {
#pragma GCC unroll 4
    for (int j = 0; j < kUnroll; ++j) {
      const Vec d = get(y + (i + j) * stride) - about;
      first[j] += d;
      second[j] += d * d;
    }
  }
  for (; i < pixels; ++i) {
    const Vec d = get(y + i * stride) - about;
    first[0] += d;
    second[0] += d * d;
  }
  put(deviation, (first[0] + first[1]) + (first[2] + first[3]));
  put(square, (second[0] + second[1]) + (second[2] + second[3]));
}

}  // namespace

void moments(ConstPixels y, int64_t pixels, int64_t channels, const float* pivot, float* deviation,
             float* square) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    moments_of_vector<false>(y.data + c, y.stride, pixels, kLanes, pivot + c, deviation + c,
                             square + c);
  }
  if (c < channels) {
    moments_of_vector<true>(y.data + c, y.stride, pixels, channels - c, pivot + c, deviation + c,
                            square + c);
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

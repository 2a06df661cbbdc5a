// Mean and squared deviations of a short run of pixels that is in the cache.

#include "training.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kUnroll = 4;

// Twice over the pixels, the second time about the mean: a variance far smaller than the mean keeps
// its digits. The sum of the deviations tells what rounding the mean has lost.
template <bool kPartial>
inline void moments_of_vector(const float* y, ptrdiff_t stride, int64_t pixels, int64_t count,
                              float* pivot, float* deviation, float* square) {
  const auto at = [&](int64_t pixel) {
    return kPartial ? load_partial(y + pixel * stride, count) : load(y + pixel * stride);
  };
  Vec sum[kUnroll] = {};
  int64_t i = 0;
  for (; i + kUnroll <= pixels; i += kUnroll) {
#pragma GCC unroll 4
    for (int j = 0; j < kUnroll; ++j) sum[j] += at(i + j);
  }
  for (; i < pixels; ++i) sum[0] += at(i);
  const Vec mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / static_cast<float>(pixels);

  Vec first[kUnroll] = {}, second[kUnroll] = {};
  for (i = 0; i + kUnroll <= pixels; i += kUnroll) {
#pragma GCC unroll 4
    for (int j = 0; j < kUnroll; ++j) {
      const Vec d = at(i + j) - mean;
      first[j] += d;
      second[j] += d * d;
    }
  }
  for (; i < pixels; ++i) {
    const Vec d = at(i) - mean;
    first[0] += d;
    second[0] += d * d;
  }
  const auto put = [&](float* p, Vec v) {
    if constexpr (kPartial) {
      store_partial(p, v, count);
    } else {
      store(p, v);
    }
  };
  put(pivot, mean);
  put(deviation, (first[0] + first[1]) + (first[2] + first[3]));
  put(square, (second[0] + second[1]) + (second[2] + second[3]));
}

}  // namespace

void moments(ConstPixels y, int64_t pixels, int64_t channels, float* pivot, float* deviation,
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

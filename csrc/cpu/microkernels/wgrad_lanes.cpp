// Weight gradient of grouped and depthwise convolutions with 1, 2, 4 or 8 channels a group.
//
// As in lanes.cpp a vector spans several groups, and one shuffle spreads input channel c of each
// group over its group's lanes.

#include <algorithm>

#include "spread.h"
#include "training.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int kVecsPerBlock = 16 / kLanes;

// Input channel c of the groups of lanes [lane, lane + kLanes) of a block.
template <int kGroup>
inline Vec gather(const float* block, int lane, int c) {
  if constexpr (kGroup == 1) {
    return load(block + lane);
  } else if constexpr (kGroup >= kLanes) {
    return broadcast(block[lane / kGroup * kGroup + c]);
  } else {
    return spread<kGroup>(load(block + lane), c);
  }
}

// Pixels after which the registers are added to a total in memory, at the end of a row: see
// kProductsPerSum in igemm.cpp.
constexpr int64_t kPixelsPerSum = 48;

template <int kCount>
struct Sums {
  Vec at[kCount] = {};

  inline void add(const Sums& other) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) at[i] += other.at[i];
  }
};

// Adds a total to the sums of one lane of every input channel and tap.
template <int kCount>
inline void store_sums(const Sums<kCount>& total, float* sums) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) store(sums + i * 16, load(sums + i * 16) + total.at[i]);
}

// The same address, which the compiler cannot know: what is loaded from it is loaded again, and
// does not take a register that a sum needs.
inline const float* reread(const float* p) {
  asm volatile("" : "+r"(p));
  return p;
}

// A row of output pixels by three adjacent taps of stride 1: each spread input serves the gradients
// of three pixels. Not inlined: the compiler would give registers to the total and spill the sums.
template <int kGroup>
[[gnu::noinline]] void sliding_row(const WgradTile& t, const float* x, const float* grad, int lane,
                                   Sums<3 * kGroup>& total) {
  const ptrdiff_t pixel_stride = t.input_pixel_stride;
  const ptrdiff_t grad_stride = t.grad_pixel_stride;
  Sums<3 * kGroup> acc;
  Vec g1{}, g2{};  // of the pixel before, and of the one before it
  for (int64_t pixel = 0; pixel < t.pixels; ++pixel) {
    const Vec g0 = load(grad);
#pragma GCC unroll 8
    for (int c = 0; c < kGroup; ++c) {
      const Vec value = gather<kGroup>(reread(x), lane, c);
      acc.at[c] += value * g0;
      acc.at[kGroup + c] += value * g1;
      acc.at[2 * kGroup + c] += value * g2;
    }
    g2 = g1;
    g1 = g0;
    grad += grad_stride;
    x += pixel_stride;
  }
#pragma GCC unroll 8
  for (int c = 0; c < kGroup; ++c) {
    const Vec value = gather<kGroup>(x, lane, c);
    acc.at[kGroup + c] += value * g1;
    acc.at[2 * kGroup + c] += value * g2;
  }
#pragma GCC unroll 8
  for (int c = 0; c < kGroup; ++c) {
    acc.at[2 * kGroup + c] += gather<kGroup>(x + pixel_stride, lane, c) * g1;
  }
  total.add(acc);
}

template <int kGroup>
void sliding_row_of_taps(const WgradTile& t, const float* input, int lane, float* sums) {
  Sums<3 * kGroup> total;
  for (int64_t n = 0; n < t.images; ++n) {
    for (int64_t row = 0; row < t.rows; ++row) {
      const float* x = input + n * t.input_image_stride + row * t.input_row_stride;
      const float* grad = t.grad + n * t.grad_image_stride + row * t.grad_row_stride + lane;
      sliding_row<kGroup>(t, x, grad, lane, total);
    }
  }
  store_sums(total, sums + lane);
}

// One tap. Several pixels at a time, each with accumulators of its own: a sum waits for the one
// before it.
template <int kGroup>
void one_tap(const WgradTile& t, const float* input, int lane, float* sums) {
  constexpr int kPixels = 8 / kGroup;
  Sums<kPixels * kGroup> acc, total;
  int64_t summed = 0;
  for (int64_t n = 0; n < t.images; ++n) {
    for (int64_t row = 0; row < t.rows; ++row) {
      const float* x = input + n * t.input_image_stride + row * t.input_row_stride;
      const float* grad = t.grad + n * t.grad_image_stride + row * t.grad_row_stride + lane;
      int64_t pixel = 0;
      for (; pixel + kPixels <= t.pixels; pixel += kPixels) {
#pragma GCC unroll 8
        for (int i = 0; i < kPixels; ++i) {
          const Vec g = load(grad + (pixel + i) * t.grad_pixel_stride);
#pragma GCC unroll 8
          for (int c = 0; c < kGroup; ++c) {
            acc.at[i * kGroup + c] +=
                g * gather<kGroup>(x + (pixel + i) * t.input_pixel_stride, lane, c);
          }
        }
      }
      for (; pixel < t.pixels; ++pixel) {
        const Vec g = load(grad + pixel * t.grad_pixel_stride);
#pragma GCC unroll 8
        for (int c = 0; c < kGroup; ++c) {
          acc.at[c] += g * gather<kGroup>(x + pixel * t.input_pixel_stride, lane, c);
        }
      }
      summed += t.pixels;
      if (summed >= kPixelsPerSum * kPixels) {
        total.add(acc);
        acc = {};
        summed = 0;
      }
    }
  }
  total.add(acc);
  Sums<kGroup> merged;
#pragma GCC unroll 8
  for (int c = 0; c < kGroup; ++c) {
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) merged.at[c] += total.at[i * kGroup + c];
  }
  store_sums(merged, sums + lane);
}

template <int kGroup>
void all_taps(const WgradTile& t) {
  // 3 x kGroup accumulators and three gradients have to stay in registers.
  constexpr bool kSlides = kGroup == 2 || kGroup == 4 || (kGroup == 8 && kLanes == 16);
  const bool slides = kSlides && t.tap_cols == 3 && t.input_pixel_stride == t.tap_col_stride;
  for (int vec = 0; vec < kVecsPerBlock; ++vec) {
    const int lane = vec * kLanes;
    for (int64_t r = 0; r < t.tap_rows; ++r) {
      const float* row = t.input + r * t.tap_row_stride;
      float* sums = t.sums + r * t.tap_cols * kGroup * 16;
      if (slides) {
        sliding_row_of_taps<kSlides ? kGroup : 1>(t, row, lane, sums);
        continue;
      }
      for (int64_t s = 0; s < t.tap_cols; ++s) {
        one_tap<kGroup>(t, row + s * t.tap_col_stride, lane, sums + s * kGroup * 16);
      }
    }
  }
}

}  // namespace

void wgrad_lanes(const WgradTile& t, int64_t group_width) {
  switch (group_width) {
    case 1:
      return all_taps<1>(t);
    case 2:
      return all_taps<2>(t);
    case 4:
      return all_taps<4>(t);
    default:
      return all_taps<8>(t);
  }
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

// From the sums of matrix tiles to outputs: shift, residual, activation. AVX-512 only.

#pragma once

#include <algorithm>
#include <type_traits>

#include "activation.h"
#include "kernels.h"
#include "round.h"

#if defined(__AVX512BW__)

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

// The sums of up to 32 positions, [block][position][16].
struct Sums {
  alignas(64) float values[2][kSplitPositions][16];
};

// The first of sixteen values, `count` of them.
inline Vec load_values(const float* from, int64_t count) {
  return count >= 16 ? load(from) : load_partial(from, count);
}
inline Vec load_values(const Bfloat16* from, int64_t count) { return (Vec)widen_some(from, count); }
inline void store_values(float* to, Vec values, int64_t count) {
  count >= 16 ? store(to, values) : store_partial(to, values, count);
}
inline void store_values(Bfloat16* to, Vec values, int64_t count) {
  _mm256_mask_storeu_epi16(to, lanes_mask(count), round_one(values));
}

// One pixel's shift, residual and activation, of some of sixteen output channels.
template <class T>
inline void finish(const ConvTile& t, const float* sums, const float* shift, const T* residual,
                   T* output, int64_t channels) {
  Vec v = load(sums) + load_values(shift, channels);
  if (residual != nullptr) v += load_values(residual, channels);
  store_values(output, activate(v, t.act, t.act_slope), channels);
}

// Makes outputs of the sums before while the next ones are computed, a few pixels between any two
// groups of products. All at once they would fill the processor's window of instructions, and the
// tiles would run dry: with 64 input channels that takes 1.4 times as long.
//
// T is what outputs and residuals are stored as.
template <class T>
class Finishing {
 public:
  Finishing(const SplitTile& tile, const ConvTile& output)
      : t_(output),
        row_positions_(tile.row_positions),
        block_stride_(tile.output_block_stride),
        blocks_(tile.blocks),
        simple_(output.out_channels % (16 * tile.blocks) == 0 &&
                (output.act == Activation::relu || output.act == Activation::none)),
        bound_(broadcast(output.act == Activation::relu ? 0.0F : -__builtin_inff())),
        at_(first_place(output)),
        first_(at_) {}

  // The next `count` positions, or the same for another panel than the first, are to be finished
  // from `sums`, in so many steps.
  void begin(const Sums& sums, int64_t count, int64_t panel, int64_t steps) {
    if (panel == 0) {
      first_ = at_;
    } else {
      at_ = first_;
    }
    channel_ = panel * kPanel;
    sums_ = sums.values[0][0];
    left_ = count;
    at_once_ = (count + steps - 1) / steps;
  }
  [[gnu::always_inline]] void step() {
    if (left_ > 0) finish_positions(std::min(at_once_, left_));
  }
  void end() {
    if (left_ > 0) finish_positions(left_);
  }

 private:
  static constexpr int64_t kPanel = 32;
  static constexpr ptrdiff_t kBlockSums = kSplitPositions * 16;

  // Of a row's positions the first ones are pixels, the others belong to no output.
  [[gnu::noinline]] void finish_positions(int64_t count) {
    left_ -= count;
    while (count > 0) {
      const bool outputs = at_.column < t_.pixels;
      const int64_t run = std::min(count, (outputs ? t_.pixels : row_positions_) - at_.column);
      if (outputs) finish_pixels(run);
      sums_ += run * 16;
      at_.column += run;
      if (at_.column == row_positions_) next_row();
      count -= run;
    }
  }

  void finish_pixels(int64_t count) {
    if (!simple_) {
      finish_any(count);
    } else if (blocks_ == 1) {
      at_.residual == nullptr ? finish_simple<1, false>(count) : finish_simple<1, true>(count);
    } else {
      at_.residual == nullptr ? finish_simple<2, false>(count) : finish_simple<2, true>(count);
    }
    at_.output += count * t_.output_pixel_stride;
    if (at_.residual != nullptr) at_.residual += count * t_.residual_pixel_stride;
  }

  template <int kBlocks, bool kResidual>
  void finish_simple(int64_t count) const {
    Vec shift[kBlocks];
    for (int block = 0; block < kBlocks; ++block) {
      shift[block] = load(t_.shift + channel_ + block * 16);
    }
    const float* sums = sums_;
    T* output = at_.output + channel_;
    const T* residual = at_.residual + (kResidual ? channel_ : 0);
    for (; count > 0; --count) {
      Vec values[kBlocks];
      for (int block = 0; block < kBlocks; ++block) {
        Vec v = load(sums + block * kBlockSums) + shift[block];
        if constexpr (kResidual) v += load_values(residual + block * block_stride_, 16);
        values[block] = at_least(v, bound_);
      }
      if constexpr (kBlocks == 2 && !std::is_same_v<T, float>) {
        // Outputs are a convolution's, whose blocks are adjacent.
        _mm512_storeu_si512(output, round_both((__m512)values[0], (__m512)values[1]));
      } else {
        for (int block = 0; block < kBlocks; ++block) {
          store_values(output + block * block_stride_, values[block], 16);
        }
      }
      sums += 16;
      output += t_.output_pixel_stride;
      if constexpr (kResidual) residual += t_.residual_pixel_stride;
    }
  }

  void finish_any(int64_t count) const {
    const int64_t channels = std::min(kPanel, t_.out_channels - channel_);
    for (int64_t pixel = 0; pixel < count; ++pixel) {
      const T* residual =
          at_.residual == nullptr ? nullptr : at_.residual + pixel * t_.residual_pixel_stride;
      T* output = at_.output + pixel * t_.output_pixel_stride;
      for (int64_t first = 0; first < channels; first += 16) {
        const ptrdiff_t block = first / 16, channel = channel_ + block * block_stride_;
        finish(t_, sums_ + pixel * 16 + block * kBlockSums, t_.shift + channel_ + first,
               residual == nullptr ? nullptr : residual + channel, output + channel,
               channels - first);
      }
    }
  }

  void next_row() {
    at_.column = 0;
    at_.output += t_.output_row_stride - t_.pixels * t_.output_pixel_stride;
    if (at_.residual == nullptr) return;
    at_.residual += t_.residual_row_stride - t_.pixels * t_.residual_pixel_stride;
  }

  struct Place {
    T* output;
    const T* residual;
    int64_t column;
  };

  static Place first_place(const ConvTile& output) {
    if constexpr (std::is_same_v<T, float>) {
      return {output.output, output.residual, 0};
    } else {
      return {output.output16, output.residual16, 0};
    }
  }

  const ConvTile& t_;
  const int64_t row_positions_;
  const ptrdiff_t block_stride_;
  const int64_t blocks_;
  const bool simple_;
  const Vec bound_;
  Place at_;
  Place first_;  // of the positions that are being finished
  int64_t channel_ = 0;
  const float* sums_ = nullptr;
  int64_t left_ = 0;
  int64_t at_once_ = 0;
};

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

#endif

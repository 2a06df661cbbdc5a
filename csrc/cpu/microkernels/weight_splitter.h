// Splits packed weights, some pairs of input channels at a time. AVX-512 only.

#pragma once

#include <algorithm>

#include "split_parts.h"

#if defined(__AVX512BW__)

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

// Not of narrow groups.
template <int kParts>
class WeightSplitter {
 public:
  explicit WeightSplitter(const SplitWeights& weights)
      : w_(weights), part_stride_(weights.blocks * kSplitBlock) {
    begin_block();
  }

  int64_t pairs() const { return w_.blocks * w_.taps * split_chunks(w_.channels) * kPairs; }
  void split_all() { split(pairs()); }
  // The next `count` of them.
  void split(int64_t count) {
    while (count > 0) {
      const int64_t some = std::min(count, kPairs - pair_);
      left_ >= kSplitChannels ? split_chunk<true>(some) : split_chunk<false>(some);
      count -= some;
      if (pair_ == kPairs) next_chunk();
    }
  }

  // Whether everything that was split has parts.
  bool finite() const { return seen_.finite(); }

 private:
  // Of a chunk's channels the first of a pair, times its number, and how far the other is.
  static constexpr int64_t kStep = kParts == kBfloat16Parts ? 2 : 1;
  static constexpr int64_t kOther = kParts == kBfloat16Parts ? 1 : kPairs;

  template <bool kFull>
  void split_chunk(int64_t count) {
    const auto channel = [&](int64_t c) {
      return kFull || c < left_ ? _mm512_loadu_ps(from_ + c * 16) : _mm512_setzero_ps();
    };
    Seen seen = seen_;
    for (const int64_t end = pair_ + count; pair_ < end; ++pair_) {
      split_pair<kParts>(channel(pair_ * kStep), channel(pair_ * kStep + kOther), to_ + pair_ * 32,
                         part_stride_, seen);
    }
    seen_ = seen;
  }

  void next_chunk() {
    pair_ = 0;
    from_ += std::min(left_, kSplitChannels) * 16;
    to_ += kParts * part_stride_;
    left_ -= kSplitChannels;
    if (left_ <= 0) next_tap();
  }
  void next_tap() {
    from_ += w_.tap_stride - w_.channels * 16;
    left_ = w_.channels;
    if (++tap_ < w_.taps) return;
    ++block_;
    begin_block();
  }
  void begin_block() {
    tap_ = 0;
    left_ = w_.channels;
    from_ = w_.weights + block_ * w_.block_stride;
    to_ = w_.target + block_ * kSplitBlock;
  }

  const SplitWeights& w_;
  const ptrdiff_t part_stride_;
  int64_t block_ = 0, tap_ = 0;
  int64_t left_ = 0;  // channels of the tap from this chunk on
  int64_t pair_ = 0;  // of the chunk
  const float* from_ = nullptr;
  Bfloat16* to_ = nullptr;
  Seen seen_;
};

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

#endif

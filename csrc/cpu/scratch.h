// Per-thread work memory that is kept between calls: the hot path allocates outputs only.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastres::cpu {

class Scratch {
 public:
  // Room for `count` floats, aligned to a cache line. The contents are lost when it grows.
  float* floats(int64_t count) {
    if (count > capacity_) {
      memory_.reset();
      memory_.reset(static_cast<float*>(
          ::operator new(static_cast<size_t>(count) * sizeof(float), kAlignment)));
      capacity_ = count;
    }
    return memory_.get();
  }

  // The same for as many bfloat16 values, as their bits.
  uint16_t* bfloat16s(int64_t count) {
    return reinterpret_cast<uint16_t*>(floats((count + 1) / 2));
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t capacity_ = 0;
};

// What a convolution or a bottleneck may need at the same time on one thread.
struct ThreadScratch {
  Scratch input, residual, output, inner1, inner2, winograd_input, winograd_output, weights,
      arranged, sums, planes, split_weights;
  // Of each layer of a bottleneck, or of each phase of a strided data gradient.
  static constexpr size_t kKeptPanels = 4;
  Scratch kept_panels[kKeptPanels];
};

inline ThreadScratch& thread_scratch() {
  thread_local ThreadScratch scratch;
  return scratch;
}

}  // namespace fastres::cpu

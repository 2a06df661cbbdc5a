// Per-thread work memory that is kept between calls: the hot path allocates outputs only.
//
// A thread's buffers lie side by side in one arena, which every part of an operator begins to use
// anew: it is as large as the most demanding operator needs, and its lines are in the cache.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastres::cpu {

class ScratchArena {
 public:
  ScratchArena() = default;
  ~ScratchArena() { unmap(); }
  ScratchArena(const ScratchArena&) = delete;
  ScratchArena& operator=(const ScratchArena&) = delete;

  // Takes everything back.
  void restart();
  // How often it has; the first one is 1.
  int64_t epoch() const { return epoch_; }
  // So many bytes until the next restart, aligned to a cache line.
  void* take(size_t bytes);

 private:
  struct Chunk {
    char* data;
    size_t size;
  };
  void unmap();

  std::vector<Chunk> chunks_;  // several until the restart after one did not suffice
  size_t used_ = 0;            // bytes of the last one
  size_t taken_ = 0;           // bytes since the last restart
  size_t most_taken_ = 0;      // between any two
  int64_t epoch_ = 1;
};

class Scratch {
 public:
  explicit Scratch(ScratchArena& arena) : arena_(arena) {}

  // Room for `count` floats, aligned to a cache line. The contents are lost when it grows, and when
  // the arena restarts.
  float* floats(int64_t count) {
    if (count > capacity_ || epoch_ != arena_.epoch()) {
      memory_ = static_cast<float*>(arena_.take(static_cast<size_t>(count) * sizeof(float)));
      capacity_ = count;
      epoch_ = arena_.epoch();
    }
    return memory_;
  }

  // The same for as many bfloat16 values, as their bits.
  uint16_t* bfloat16s(int64_t count) {
    return reinterpret_cast<uint16_t*>(floats((count + 1) / 2));
  }

 private:
  ScratchArena& arena_;
  float* memory_ = nullptr;
  int64_t capacity_ = 0;
  int64_t epoch_ = 0;
};

// What a convolution or a bottleneck may need at the same time on one thread.
struct ThreadScratch {
  ScratchArena arena;
  Scratch input{arena}, residual{arena}, output{arena}, inner1{arena}, inner2{arena},
      winograd_input{arena}, winograd_output{arena}, weights{arena}, next_weights{arena},
      arranged{arena}, sums{arena}, planes{arena}, split_weights{arena}, widened{arena};
  // Of each layer of a bottleneck, or of each phase of a strided data gradient.
  static constexpr size_t kKeptPanels = 4;
  Scratch kept_panels[kKeptPanels] = {Scratch(arena), Scratch(arena), Scratch(arena),
                                      Scratch(arena)};
};

inline ThreadScratch& thread_scratch() {
  thread_local ThreadScratch scratch;
  return scratch;
}

}  // namespace fastres::cpu

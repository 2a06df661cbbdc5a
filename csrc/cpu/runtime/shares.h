// Work that threads share, at the speed that each of them has.
//
// The cores of a shared machine are not equally fast from one moment to the next, and the slowest
// of even shares decides when an operator ends. So a thread takes its share piece by piece, and one
// that has none left takes half of what another has (Blumofe and Leiserson, "Scheduling
// Multithreaded Computations by Work Stealing", 1999).

#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace fastres::cpu {

class Shares {
 public:
  // Items [0, count), less than 2^32, of which each of `parts` begins with an even range. Where
  // work `stays`, nobody takes another's.
  Shares(int64_t count, int64_t parts, bool stays = false);

  // Part i's work: calls first_of(range) for what to take of a range first, some items from its
  // beginning on, and then run(items, left) with those and what it has left for now.
  template <class FirstOf, class Run>
  void run(int64_t i, const FirstOf& first_of, const Run& run) {
    std::atomic<uint64_t>& own = slots_[static_cast<size_t>(i)].range;
    for (;;) {
      uint64_t packed = own.load();
      const Range all = unpacked(packed);
      if (all.size() == 0) {
        if (!steal(i)) return;
        continue;
      }
      const Range first = first_of(all);
      const Range left{first.end, all.end};
      if (own.compare_exchange_strong(packed, pack(left))) run(first, left);
    }
  }

 private:
  // A line of its own, which no other part's changes take away.
  struct alignas(64) Slot {
    std::atomic<uint64_t> range;
  };

  static uint64_t pack(Range range) {
    return static_cast<uint64_t>(range.begin) << 32 | static_cast<uint64_t>(range.end);
  }
  static Range unpacked(uint64_t packed) {
    return {static_cast<int64_t>(packed >> 32), static_cast<int64_t>(packed & 0xffffffff)};
  }

  // The second half of what the part with the most has left; false if there is none.
  bool steal(int64_t i);

  std::vector<Slot> slots_;
  const bool stays_;
};

}  // namespace fastres::cpu

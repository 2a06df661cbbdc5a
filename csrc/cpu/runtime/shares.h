// Work that threads share, at the speed that each of them has.
//
// The cores of a shared machine are not equally fast from one moment to the next, and the slowest
// of even shares decides when an operator ends. So a thread takes its share piece by piece, and one
// that has none left takes half of what another has (Blumofe and Leiserson, "Scheduling
// Multithreaded Computations by Work Stealing", 1999).

#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "parallel.h"

namespace fastres::cpu {

class Shares {
 public:
  // Items [0, count), of which each of `parts` begins with an even range. Where work `stays`,
  // nobody takes another's.
  Shares(int64_t count, int64_t parts, bool stays = false);

  // Part i's work: calls first_of(range) for what to take of a range first, some items from its
  // beginning on, and then run(items, left) with those and what it has left for now.
  template <class FirstOf, class Run>
  void run(int64_t i, const FirstOf& first_of, const Run& run) {
    for (;;) {
      const Piece piece = take(i, first_of);
      if (piece.items.size() > 0) {
        run(piece.items, piece.left);
      } else if (!steal(i)) {
        return;
      }
    }
  }

 private:
  struct Piece {
    Range items, left;
  };

  // A line of its own, which no other part's changes take away.
  struct alignas(64) Slot {
    std::mutex mutex;
    Range range;
  };

  Slot& slot(int64_t i) { return slots_[static_cast<size_t>(i)]; }

  template <class FirstOf>
  Piece take(int64_t i, const FirstOf& first_of) {
    const std::lock_guard<std::mutex> lock(slot(i).mutex);
    Range& range = slot(i).range;
    if (range.size() == 0) return {};
    const Range items = first_of(range);
    range.begin = items.end;
    return {items, range};
  }

  // The second half of what the part with the most has left; false if there is none.
  bool steal(int64_t i);

  std::vector<Slot> slots_;
  const bool stays_;
};

}  // namespace fastres::cpu

#include "shares.h"

namespace fastres::cpu {

Shares::Shares(int64_t count, int64_t parts, bool stays)
    : slots_(static_cast<size_t>(parts)), stays_(stays) {
  for (int64_t i = 0; i < parts; ++i) slot(i).range = even_range(count, parts, i);
}

bool Shares::steal(int64_t i) {
  if (stays_) return false;
  for (;;) {
    Slot* fullest = nullptr;
    int64_t most = 0;
    for (Slot& other : slots_) {
      const std::lock_guard<std::mutex> lock(other.mutex);
      if (other.range.size() <= most) continue;
      fullest = &other;
      most = other.range.size();
    }
    if (fullest == nullptr) return false;
    Range half;
    {
      const std::lock_guard<std::mutex> lock(fullest->mutex);
      const Range all = fullest->range;
      half = {all.begin + all.size() / 2, all.end};
      fullest->range.end = half.begin;
    }
    if (half.size() == 0) continue;  // taken meanwhile
    const std::lock_guard<std::mutex> lock(slot(i).mutex);
    slot(i).range = half;
    return true;
  }
}

}  // namespace fastres::cpu

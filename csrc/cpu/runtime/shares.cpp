#include "shares.h"

namespace fastres::cpu {

Shares::Shares(int64_t count, int64_t parts, bool stays)
    : slots_(static_cast<size_t>(parts)), stays_(stays) {
  for (int64_t i = 0; i < parts; ++i) {
    slots_[static_cast<size_t>(i)].range.store(pack(even_range(count, parts, i)));
  }
}

bool Shares::steal(int64_t i) {
  if (stays_) return false;
  for (;;) {
    Slot* fullest = nullptr;
    uint64_t most = 0;
    for (Slot& slot : slots_) {
      const uint64_t packed = slot.range.load();
      if (unpacked(packed).size() > unpacked(most).size()) {
        fullest = &slot;
        most = packed;
      }
    }
    if (fullest == nullptr) return false;
    const Range all = unpacked(most);
    const int64_t middle = all.begin + all.size() / 2;
    if (!fullest->range.compare_exchange_strong(most, pack({all.begin, middle}))) continue;
    slots_[static_cast<size_t>(i)].range.store(pack({middle, all.end}));
    return true;
  }
}

}  // namespace fastres::cpu

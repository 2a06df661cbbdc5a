// Brings what comes next into the level-2 cache while something else is computed.

#pragma once

#include <algorithm>

#include "kernels.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

// Walks over what is to be fetched, a few lines at every step.
class Fetching {
 public:
  Fetching(const FetchList& list, int64_t steps) : list_(list) {
    int64_t bytes = 0;
    for (const FloatSpan& span : list.spans)
      bytes += span.rows * span.count * int64_t{sizeof(float)};
    lines_ = std::min<int64_t>(kMostLines, (bytes / kLineBytes + steps - 1) / steps);
  }
  void step() {
    for (int64_t i = 0; i < lines_; ++i) {
      while (done_ >= list_.spans[span_].count) {
        if (!next_row()) return;
      }
      const FloatSpan& span = list_.spans[span_];
      __builtin_prefetch(span.data + row_ * span.row_stride + done_, 0, 2);
      done_ += kLineBytes / int64_t{sizeof(float)};
    }
  }

 private:
  static constexpr int64_t kLineBytes = 64;
  static constexpr int64_t kMostLines = 16;

  // False after the last one.
  bool next_row() {
    done_ = 0;
    if (++row_ < list_.spans[span_].rows) return true;
    row_ = 0;
    if (++span_ < FetchList::kSpans) return true;
    lines_ = 0;
    return false;
  }

  const FetchList& list_;
  int64_t lines_;
  int span_ = 0;
  int64_t row_ = 0;
  int64_t done_ = 0;
};

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include "scratch.h"

namespace fastres::cpu {

int64_t thread_count() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

void run_parts(int64_t parts, const void* part, void (*call)(const void* part, int64_t i)) {
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      thread_scratch().arena.restart();
      call(part, i);
    }
  };
  if (parts == 1) return run(0, 1);
  torch::stable::parallel_for(0, parts, 1, run);
}

}  // namespace fastres::cpu

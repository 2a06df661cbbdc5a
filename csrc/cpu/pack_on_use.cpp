#include "pack_on_use.h"

#include <algorithm>
#include <thread>

namespace fastres::cpu {

PackOnUse::PackOnUse(const Microkernels& kernels, const PackedHeader& header,
                     const PlainWeight& weight, float* payload)
    : kernels_(kernels),
      header_(header),
      weight_(weight),
      payload_(payload),
      states_(new std::atomic<State>[static_cast<size_t>(block_count(header))] {}) {}

void PackOnUse::prepare(Range blocks) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    std::atomic<State>& state = states_[static_cast<size_t>(block)];
    State seen = state.load(std::memory_order_acquire);
    while (seen != State::packed) {
      if (seen == State::plain && state.compare_exchange_strong(seen, State::packing)) {
        pack(block, state);
      } else {
        std::this_thread::yield();
      }
      seen = state.load(std::memory_order_acquire);
    }
  }
}

FloatSpan PackOnUse::unpacked(Range blocks) const {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const auto& state = states_[static_cast<size_t>(block)];
    if (state.load(std::memory_order_relaxed) != State::plain) return {};
  }
  return plain_values(header_, weight_, blocks);
}

void PackOnUse::pack(int64_t block, std::atomic<State>& state) {
  try {
    pack(block);
  } catch (...) {
    state.store(State::plain, std::memory_order_release);
    throw;
  }
  state.store(State::packed, std::memory_order_release);
}

void PackOnUse::pack(int64_t block) {
  if (header_.layout == PackedLayout::bfloat16) return pack_panel(block);
  float* target = payload_ + block * header_.block_stride();
  const Range blocks{block, block + 1};
  if (header_.layout == PackedLayout::winograd) {
    const int64_t position_stride = header_.blocks() * header_.block_stride();
    pack_winograd_blocks(kernels_, header_, weight_, blocks, target, position_stride);
  } else {
    pack_blocks(kernels_, header_, weight_, blocks, target);
  }
}

// Blocks are prepared in order, so that others come with the first of their panel.
void PackOnUse::pack_panel(int64_t block) {
  if (block % kBfloat16PanelBlocks != 0) return;
  const int64_t panel = block / kBfloat16PanelBlocks;
  auto* target = reinterpret_cast<Bfloat16*>(payload_) + block * header_.block_stride();
  pack_bfloat16_panels(kernels_, header_, weight_, {panel, panel + 1}, target);
}

}  // namespace fastres::cpu

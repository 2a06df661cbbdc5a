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
      unit_blocks_(header.layout == PackedLayout::bfloat16 ? kBfloat16PanelBlocks : 1),
      states_(
          new std::atomic<State>[static_cast<size_t>(units_of({0, block_count(header)}).end)] {}) {}

Range PackOnUse::units_of(Range blocks) const {
  return {blocks.begin / unit_blocks_, (blocks.end + unit_blocks_ - 1) / unit_blocks_};
}

void PackOnUse::prepare(Range blocks) {
  const Range units = units_of(blocks);
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    std::atomic<State>& state = states_[static_cast<size_t>(unit)];
    State seen = state.load(std::memory_order_acquire);
    while (seen != State::packed) {
      if (seen == State::plain && state.compare_exchange_strong(seen, State::packing)) {
        pack(unit, state);
      } else {
        std::this_thread::yield();
      }
      seen = state.load(std::memory_order_acquire);
    }
  }
}

FloatSpan PackOnUse::unpacked(Range blocks) const {
  const Range units = units_of(blocks);
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const auto& state = states_[static_cast<size_t>(unit)];
    if (state.load(std::memory_order_relaxed) != State::plain) return {};
  }
  return plain_values(header_, weight_, blocks);
}

void PackOnUse::pack(int64_t unit, std::atomic<State>& state) {
  try {
    pack(unit);
  } catch (...) {
    state.store(State::plain, std::memory_order_release);
    throw;
  }
  state.store(State::packed, std::memory_order_release);
}

void PackOnUse::pack(int64_t unit) {
  const Range blocks{unit * unit_blocks_, (unit + 1) * unit_blocks_};
  float* target = payload_ + blocks.begin * header_.block_stride();
  if (header_.layout == PackedLayout::winograd) {
    const int64_t position_stride = header_.blocks() * header_.block_stride();
    pack_winograd_blocks(kernels_, header_, weight_, blocks, target, position_stride);
  } else if (header_.layout == PackedLayout::bfloat16) {
    auto* values = reinterpret_cast<Bfloat16*>(payload_) + blocks.begin * header_.block_stride();
    pack_bfloat16_panels(kernels_, header_, weight_, {unit, unit + 1}, values);
  } else {
    pack_blocks(kernels_, header_, weight_, blocks, target);
  }
}

}  // namespace fastres::cpu

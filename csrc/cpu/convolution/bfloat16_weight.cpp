#include "bfloat16_weight.h"

#include <algorithm>
#include <bit>

#include "../runtime/scratch.h"
#include "split_rows.h"

namespace fastres::cpu {
namespace {

PackedHeader float_header(PackedHeader header) {
  header.layout = PackedLayout::igemm;
  return header;
}

int64_t panels_of(const PackedHeader& h) {
  return h.out_channels / (kBfloat16PanelBlocks * kChannelBlock);
}

int64_t panel_size(const PackedHeader& h) { return kBfloat16PanelBlocks * h.block_stride(); }

// Calls use(i, j) for the values of a panel of packed blocks, one after the other, and of the same
// panel in this layout.
template <class Use>
void for_each_value(const PackedHeader& h, const Use& use) {
  constexpr int64_t kPairs = kSplitChannels / 2;
  const int64_t chunks = h.group_in_channels / kSplitChannels;
  int64_t to = 0;
  for (int64_t chunk = 0; chunk < h.taps() * chunks; ++chunk) {
    for (int64_t block = 0; block < kBfloat16PanelBlocks; ++block) {
      const int64_t from = block * h.block_stride() + chunk * kSplitBlock;
      for (int64_t pair = 0; pair < kPairs; ++pair) {
        for (int64_t lane = 0; lane < kChannelBlock; ++lane, to += 2) {
          const int64_t first = from + 2 * pair * kChannelBlock + lane;
          use(first, to);
          use(first + kChannelBlock, to + 1);
        }
      }
    }
  }
}

template <class Part>
void parallel_panels(const PackedHeader& h, const Part& part) {
  const int64_t panels = panels_of(h), parts = std::min(thread_count(), panels);
  parallel_parts(parts, [&](int64_t i) {
    const Range mine = even_range(panels, parts, i);
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) part(panel);
  });
}

}  // namespace

void pack_bfloat16(const Microkernels& kernels, const PackedHeader& header,
                   const PlainWeight& weight, Bfloat16* payload) {
  const int64_t values = panel_size(header);
  parallel_panels(header, [&](int64_t panel) {
    float* packed = thread_scratch().weights.floats(values);
    const Range blocks{panel * kBfloat16PanelBlocks, (panel + 1) * kBfloat16PanelBlocks};
    pack_blocks(kernels, float_header(header), weight, blocks, packed);
    Bfloat16* rounded = thread_scratch().split_weights.bfloat16s(values);
    kernels.narrow(packed, StorageType::bfloat16, rounded, values);
    Bfloat16* target = payload + panel * values;
    for_each_value(header, [&](int64_t from, int64_t to) { target[to] = rounded[from]; });
  });
}

void widen_weight(const Microkernels& kernels, ConvLayer& layer, const PlainWeight& plain,
                  int64_t pixels, std::optional<PooledFloats>& memory) {
  const PackedHeader header = layer.header;
  if (header.layout != PackedLayout::bfloat16 || prefers_tiles(kernels, layer, pixels)) return;
  layer.header = float_header(header);
  if (plain.data != nullptr) return;
  float* payload = memory.emplace(layer.header.payload_floats()).data();
  const auto* packed = reinterpret_cast<const Bfloat16*>(layer.weights);
  const int64_t values = panel_size(header);
  parallel_panels(header, [&](int64_t panel) {
    const Bfloat16* from = packed + panel * values;
    float* target = payload + panel * values;
    for_each_value(header, [&](int64_t to, int64_t at) {
      target[to] = std::bit_cast<float>(uint32_t{from[at]} << 16);
    });
  });
  layer.weights = payload;
}

}  // namespace fastres::cpu

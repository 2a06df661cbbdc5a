#include "plain_weight.h"

#include <algorithm>

#include "../runtime/scratch.h"

namespace fastres::cpu {
namespace {

// Smaller weights are not worth waking other threads.
constexpr int64_t kFloatsPerThread = int64_t{1} << 14;

// The output channels of a block.
Range block_channels(const PackedHeader& h, int64_t block) {
  const bool lanes = h.layout == PackedLayout::lanes;
  const int64_t channels = lanes ? h.out_channels : h.group_out_channels();
  const int64_t group = block / h.blocks() * channels;
  const int64_t first = block % h.blocks() * kChannelBlock;
  return {group + first, group + std::min(first + kChannelBlock, channels)};
}

const char* channel_data(const PackedHeader& h, const PlainWeight& weight, int64_t channel) {
  const int64_t values = channel * h.group_in_channels * h.taps();
  return static_cast<const char*>(weight.data) + values * element_bytes(weight.type);
}

// As float32: where they are, or in this thread's scratch memory until the next block's, of these
// input channels alone, each where it is among all.
const float* float_channels(const Microkernels& kernels, const PackedHeader& h,
                            const PlainWeight& weight, Range channels, Range inputs) {
  const char* values = channel_data(h, weight, channels.begin);
  if (weight.type == StorageType::float32) return reinterpret_cast<const float*>(values);
  const int64_t count = channels.size() * h.group_in_channels * h.taps();
  float* target = thread_scratch().widened.floats(count);
  const int64_t inside = weight.channels_last ? 1 : h.taps();
  const bool all = inputs.size() == h.group_in_channels;
  const int64_t step = all ? count : h.group_in_channels * inside;
  const int64_t first = inputs.begin * inside, some = all ? count : inputs.size() * inside;
  for (int64_t at = first; at < count; at += step) {
    kernels.widen(values + at * element_bytes(weight.type), weight.type, target + at, some);
  }
  return target;
}

Range all_inputs(const PackedHeader& h) { return {0, h.group_in_channels}; }

// The scale of a block's output channels, or 1.
void set_factors(const PlainWeight& weight, Range channels, float* factors) {
  std::fill_n(factors, kChannelBlock, 1.0F);
  if (weight.scale != nullptr) std::copy_n(weight.scale + channels.begin, channels.size(), factors);
}

// Where the weights of one block of sixteen output channels are; of a 16-bit weight those of some
// input channels.
PackSource block_source(const Microkernels& kernels, const PackedHeader& h,
                        const PlainWeight& weight, int64_t block, Range inputs, float* factors) {
  const Range channels = block_channels(h, block);
  PackSource source{};
  source.lane_stride = h.group_in_channels * h.taps();
  source.weight = float_channels(kernels, h, weight, channels, inputs);
  source.lanes = channels.size();
  source.channels = h.group_in_channels;
  source.taps = h.taps();
  source.taps_outside = weight.channels_last;
  set_factors(weight, channels, factors);
  source.scale = factors;
  return source;
}

// A panel of a weight whose input channels are adjacent.
void round_panel(const Microkernels& kernels, const PackedHeader& h, const PlainWeight& weight,
                 int64_t panel, Bfloat16* target) {
  const int64_t taps = h.taps(), channels = h.group_in_channels;
  float factors[kChannelBlock];
  WeightRows rows{};
  rows.type = weight.type;
  rows.row_stride = taps * channels;
  rows.channels = channels;
  rows.scale = factors;
  rows.chunk_stride = kBfloat16PanelBlocks * kSplitBlock;
  for (int64_t i = 0; i < kBfloat16PanelBlocks; ++i) {
    const Range outputs = block_channels(h, panel * kBfloat16PanelBlocks + i);
    set_factors(weight, outputs, factors);
    for (int64_t tap = 0; tap < taps; ++tap) {
      rows.rows =
          channel_data(h, weight, outputs.begin) + tap * channels * element_bytes(weight.type);
      rows.target =
          target + (tap * channels / kSplitChannels * kBfloat16PanelBlocks + i) * kSplitBlock;
      kernels.split->round_weight_rows(rows);
    }
  }
}

// The same where taps are adjacent: thirty-two channels after the other, packed as float32 values
// in between, which stay in the level-1 cache.
void transpose_panel(const Microkernels& kernels, const PackedHeader& h, const PlainWeight& weight,
                     int64_t panel, Bfloat16* target) {
  const int64_t taps = h.taps(), chunks = h.group_in_channels / kSplitChannels;
  float* packed = thread_scratch().split_weights.floats(taps * kSplitBlock);
  SplitWeights split{};
  split.blocks = split.taps = 1;
  split.channels = kSplitChannels;
  for (int64_t i = 0; i < kBfloat16PanelBlocks; ++i) {
    float factors[kChannelBlock];
    PackSource source =
        block_source(kernels, h, weight, panel * kBfloat16PanelBlocks + i, all_inputs(h), factors);
    source.channels = kSplitChannels;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      kernels.pack_direct(source, packed);
      source.weight += kSplitChannels * taps;
      for (int64_t tap = 0; tap < taps; ++tap) {
        split.weights = packed + tap * kSplitBlock;
        split.target = target + ((tap * chunks + chunk) * kBfloat16PanelBlocks + i) * kSplitBlock;
        kernels.split->split_weights(split);
      }
    }
  }
}

}  // namespace

int64_t block_count(const PackedHeader& h) {
  const bool by_group = h.layout == PackedLayout::igemm || h.layout == PackedLayout::bfloat16;
  return by_group ? h.groups * h.blocks() : h.blocks();
}

FloatSpan plain_values(const PackedHeader& h, const PlainWeight& weight, Range blocks) {
  const char* begin = channel_data(h, weight, block_channels(h, blocks.begin).begin);
  const char* end = channel_data(h, weight, block_channels(h, blocks.end - 1).end);
  return {reinterpret_cast<const float*>(begin), (end - begin) / int64_t{sizeof(float)}};
}

FloatSpan plain_channels(const PackedHeader& h, const PlainWeight& weight, Range blocks,
                         Range channels) {
  const int64_t inside = weight.channels_last ? 1 : h.taps();
  const int64_t row = h.group_in_channels * inside * element_bytes(weight.type);
  const auto all = plain_values(h, weight, blocks);
  const auto floats = [&](int64_t part) {
    return row * part / h.group_in_channels / int64_t{sizeof(float)};
  };
  return {all.data + floats(channels.begin), floats(channels.size()),
          all.count / floats(h.group_in_channels), floats(h.group_in_channels)};
}

void pack_blocks(const Microkernels& kernels, const PackedHeader& h, const PlainWeight& weight,
                 Range blocks, float* target) {
  pack_block_channels(kernels, h, weight, blocks, all_inputs(h), target);
}

void pack_block_channels(const Microkernels& kernels, const PackedHeader& h,
                         const PlainWeight& weight, Range blocks, Range channels, float* target) {
  const bool all = channels.size() == h.group_in_channels;
  const int64_t outside = weight.channels_last && !all ? h.taps() : 1;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    float factors[kChannelBlock];
    PackSource source = block_source(kernels, h, weight, block, channels, factors);
    source.tap_channels = h.group_in_channels;
    source.channels = channels.size();
    source.taps /= outside;
    source.weight += channels.begin * source.taps;
    for (int64_t tap = 0; tap < outside; ++tap) {
      const int64_t values = tap * h.group_in_channels;
      kernels.pack_direct(source, target + (values + channels.begin) * kChannelBlock);
      source.weight += h.group_in_channels;
    }
    target += h.block_stride();
  }
}

void pack_bfloat16_panels(const Microkernels& kernels, const PackedHeader& h,
                          const PlainWeight& weight, Range panels, Bfloat16* target) {
  const bool adjacent = h.taps() == 1 || weight.channels_last;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    (adjacent ? round_panel : transpose_panel)(kernels, h, weight, panel, target);
    target += kBfloat16PanelBlocks * h.block_stride();
  }
}

void pack_winograd_blocks(const Microkernels& kernels, const PackedHeader& h,
                          const PlainWeight& weight, Range blocks, float* target,
                          int64_t position_stride) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    float factors[kChannelBlock];
    kernels.pack_winograd(block_source(kernels, h, weight, block, all_inputs(h), factors), target,
                          position_stride);
    target += h.block_stride();
  }
}

void pack_payload(const Microkernels& kernels, const PackedHeader& h, const PlainWeight& weight,
                  float* payload) {
  const int64_t blocks = block_count(h);
  const int64_t parts = std::clamp(h.payload_floats() / kFloatsPerThread, int64_t{1},
                                   std::min(thread_count(), blocks));
  parallel_parts(parts, [&](int64_t part) {
    const Range range = even_range(blocks, parts, part);
    float* target = payload + range.begin * h.block_stride();
    if (h.layout == PackedLayout::winograd) {
      pack_winograd_blocks(kernels, h, weight, range, target, blocks * h.block_stride());
    } else {
      pack_blocks(kernels, h, weight, range, target);
    }
  });
}

}  // namespace fastres::cpu

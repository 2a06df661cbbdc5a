#include "plain_weight.h"

#include <algorithm>

namespace fastres::cpu {
namespace {

// Smaller weights are not worth waking other threads.
constexpr int64_t kFloatsPerThread = int64_t{1} << 14;

// Where the weights of one block of sixteen output channels are.
PackSource block_source(const PackedHeader& h, const PlainWeight& weight, int64_t block,
                        float* factors) {
  const bool lanes = h.layout == PackedLayout::lanes;
  const int64_t channels = lanes ? h.out_channels : h.group_out_channels();
  const int64_t first = block % h.blocks() * kChannelBlock;
  const int64_t channel = block / h.blocks() * channels + first;
  PackSource source{};
  source.lane_stride = h.group_in_channels * h.taps();
  source.weight = weight.data + channel * source.lane_stride;
  source.lanes = std::min<int64_t>(kChannelBlock, channels - first);
  source.channels = h.group_in_channels;
  source.taps = h.taps();
  source.taps_outside = weight.channels_last;
  std::fill_n(factors, kChannelBlock, 1.0F);
  if (weight.scale != nullptr) std::copy_n(weight.scale + channel, source.lanes, factors);
  source.scale = factors;
  return source;
}

}  // namespace

int64_t block_count(const PackedHeader& h) {
  return h.layout == PackedLayout::igemm ? h.groups * h.blocks() : h.blocks();
}

void pack_blocks(const Microkernels& kernels, const PackedHeader& h, const PlainWeight& weight,
                 Range blocks, float* target) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    float factors[kChannelBlock];
    kernels.pack_direct(block_source(h, weight, block, factors), target);
    target += h.block_stride();
  }
}

void pack_winograd_blocks(const Microkernels& kernels, const PackedHeader& h,
                          const PlainWeight& weight, Range blocks, float* target,
                          int64_t position_stride) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    float factors[kChannelBlock];
    kernels.pack_winograd(block_source(h, weight, block, factors), target, position_stride);
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

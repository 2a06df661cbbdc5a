#include "weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>

#include "../runtime/parallel.h"

namespace fastres::cpu {
namespace {

// Input channels that are packed together: with the taps of a 3x3 they fit in the level-1 cache.
constexpr int64_t kChannelsAtOnce = 32;
// Blocks that are packed together: with their targets, as many streams as the processor follows.
constexpr int64_t kBlocksAtOnce = 8;
// Smaller weights are not worth waking other threads.
constexpr int64_t kFloatsPerThread = int64_t{1} << 15;

// One block of 16 output channels: where each of its lanes starts, and how to go on from there.
struct Block {
  std::array<float*, kChannelBlock> lanes = {};
  int64_t count = 0;  // lanes that there are
  int64_t in_channels = 0;
  int64_t in_stride = 0;
  std::vector<int64_t> taps;

  bool lanes_adjacent() const {
    return count == kChannelBlock && lanes[kChannelBlock - 1] - lanes[0] == kChannelBlock - 1 &&
           lanes[1] - lanes[0] == 1;
  }
};

// Calls use(packed, weight) for each of the block's elements, all lanes but those beyond `count`.
template <class Use>
void for_each_element(const Block& block, float* packed, const Use& use) {
  const auto taps = static_cast<int64_t>(block.taps.size());
  for (int64_t first = 0; first < block.in_channels; first += kChannelsAtOnce) {
    const int64_t last = std::min(first + kChannelsAtOnce, block.in_channels);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t offset = block.taps[static_cast<size_t>(tap)];
      float* at = packed + tap * block.in_channels * kChannelBlock;
      for (int64_t lane = 0; lane < block.count; ++lane) {
        float* weight = block.lanes[static_cast<size_t>(lane)] + offset;
        for (int64_t c = first; c < last; ++c) {
          use(at[c * kChannelBlock + lane], weight[c * block.in_stride]);
        }
      }
    }
  }
}

// Blocks whose lanes are adjacent, side by side: one of them takes a single line of each row of the
// weight, and rows are so far apart that the processor does not foresee them.
void pack_adjacent(std::span<const Block> blocks, float* packed, int64_t stride) {
  const Block& first = blocks.front();
  for (const int64_t offset : first.taps) {
    for (int64_t c = 0; c < first.in_channels; ++c) {
      for (size_t i = 0; i < blocks.size(); ++i) {
        std::memcpy(packed + static_cast<int64_t>(i) * stride,
                    blocks[i].lanes[0] + offset + c * first.in_stride,
                    kChannelBlock * sizeof(float));
      }
      packed += kChannelBlock;
    }
  }
}

void pack_block(const Block& block, float* packed) {
  const auto taps = static_cast<int64_t>(block.taps.size());
  if (block.count < kChannelBlock) {
    std::fill_n(packed, taps * block.in_channels * kChannelBlock, 0.0F);
  }
  for_each_element(block, packed, [](float& to, const float& from) { to = from; });
}

// All taps of a weight of PyTorch's usual strides: by the microkernel that pack_conv_weight uses.
void pack_contiguous_block(const Microkernels& kernels, const WeightView& weight,
                           const Block& block, float* packed) {
  float ones[kChannelBlock];
  std::fill_n(ones, kChannelBlock, 1.0F);
  PackSource source{};
  source.weight = block.lanes[0];
  source.lane_stride = weight.stride_k;
  source.lanes = block.count;
  source.channels = block.in_channels;
  source.taps = static_cast<int64_t>(block.taps.size());
  source.scale = ones;
  kernels.pack_direct(source, packed);
}

// The way back for one tap, where input channels are adjacent in the weight.
void unpack_pointwise_block(const Microkernels& kernels, const float* packed, const Block& block) {
  float ones[kChannelBlock];
  std::fill_n(ones, kChannelBlock, 1.0F);
  alignas(64) float piece[kChannelBlock * kChannelBlock];
  PackSource source{};
  source.lane_stride = source.channels = kChannelBlock;
  source.taps = 1;
  source.scale = ones;
  for (int64_t c = 0; c < block.in_channels; c += kChannelBlock) {
    source.weight = packed + c * kChannelBlock;
    source.lanes = std::min(kChannelBlock, block.in_channels - c);
    kernels.pack_direct(source, piece);
    for (int64_t lane = 0; lane < block.count; ++lane) {
      std::copy_n(piece + lane * kChannelBlock, source.lanes,
                  block.lanes[static_cast<size_t>(lane)] + block.taps[0] + c);
    }
  }
}

bool is_contiguous(const WeightView& weight) {
  const int64_t taps = weight.kernel.h * weight.kernel.w;
  return weight.stride_s == 1 && weight.stride_r == weight.kernel.w && weight.stride_c == taps &&
         weight.stride_k == weight.group_in_channels * taps;
}

// The blocks of a weight, in the order of its packed layout.
class Blocks {
 public:
  Blocks(const WeightView& weight, bool transposed, const Taps& rows, const Taps& cols)
      : weight_(weight),
        transposed_(transposed),
        header_(header_of(weight, transposed, rows, cols)) {
    for (const int64_t r : rows) {
      for (const int64_t s : cols) taps_.push_back(r * weight.stride_r + s * weight.stride_s);
    }
  }

  int64_t count() const {
    return header_.payload_floats() / std::max<int64_t>(1, header_.block_stride());
  }
  int64_t stride() const { return header_.block_stride(); }

  Block operator[](int64_t i) const {
    const bool lanes = header_.layout == PackedLayout::lanes;
    const int64_t per_group = header_.group_out_channels();
    const int64_t first =
        lanes ? i * kChannelBlock
              : i / header_.blocks() * per_group + i % header_.blocks() * kChannelBlock;
    const int64_t end = lanes ? header_.out_channels : (i / header_.blocks() + 1) * per_group;
    Block block;
    block.count = std::min(kChannelBlock, end - first);
    block.in_channels = header_.group_in_channels;
    block.in_stride = transposed_ ? weight_.stride_k : weight_.stride_c;
    block.taps = taps_;
    for (int64_t lane = 0; lane < block.count; ++lane) {
      block.lanes[static_cast<size_t>(lane)] = first_element(first + lane);
    }
    return block;
  }

 private:
  // Of one output channel of the packed convolution.
  float* first_element(int64_t channel) const {
    const int64_t per_group = header_.group_out_channels();
    const int64_t group = channel / per_group;
    const int64_t inside = channel % per_group;
    return weight_.data + group * weight_.group_out_channels() * weight_.stride_k +
           inside * (transposed_ ? weight_.stride_c : weight_.stride_k);
  }

  const WeightView& weight_;
  bool transposed_;
  PackedHeader header_;
  std::vector<int64_t> taps_;
};

// Calls part(range) with each thread's blocks.
template <class AnyBlocks, class Part>
void parallel_block_ranges(const AnyBlocks& blocks, const Part& part) {
  const int64_t floats = blocks.count() * blocks.stride();
  const int64_t parts =
      std::clamp(floats / kFloatsPerThread, int64_t{1}, std::min(thread_count(), blocks.count()));
  parallel_parts(parts, [&](int64_t i) { part(even_range(blocks.count(), parts, i)); });
}

template <class AnyBlocks, class Part>
void parallel_blocks(const AnyBlocks& blocks, const Part& part) {
  parallel_block_ranges(blocks, [&](Range range) {
    for (int64_t b = range.begin; b < range.end; ++b) part(b);
  });
}

void pack_range(const Blocks& blocks, Range range, float* target) {
  for (int64_t b = range.begin; b < range.end;) {
    std::vector<Block> adjacent;
    while (b < range.end && std::ssize(adjacent) < kBlocksAtOnce) {
      Block block = blocks[b];
      if (!block.lanes_adjacent()) break;
      adjacent.push_back(std::move(block));
      ++b;
    }
    if (adjacent.empty()) {
      pack_block(blocks[b], target + b * blocks.stride());
      ++b;
    } else {
      pack_adjacent(adjacent, target + (b - std::ssize(adjacent)) * blocks.stride(),
                    blocks.stride());
    }
  }
}

// A block of sixteen output channels of a dense 3x3, and where the first of them begins. For the
// gradient of the input, input and output channels change places, and the taps their order.
class WinogradBlocks {
 public:
  WinogradBlocks(const Microkernels& kernels, const WeightView& weight, bool transposed)
      : kernels_(kernels),
        weight_(weight),
        transposed_(transposed),
        header_(header_of(weight, transposed, all_taps(3), all_taps(3), true)) {
    std::fill_n(ones_, kChannelBlock, 1.0F);
  }

  int64_t count() const { return header_.blocks(); }
  int64_t stride() const { return header_.block_stride(); }

  void pack(int64_t block, float* target) const {
    const int64_t first = block * kChannelBlock;
    const int64_t lanes = std::min<int64_t>(kChannelBlock, header_.out_channels - first);
    PackSource source{};
    source.lanes = lanes;
    source.taps = kTaps;
    source.scale = ones_;
    target += block * stride();
    if (!transposed_ && is_contiguous(weight_)) {
      source.weight = weight_.data + first * weight_.stride_k;
      source.lane_stride = weight_.stride_k;
      source.channels = header_.group_in_channels;
      return kernels_.pack_winograd(source, target, count() * stride());
    }
    float piece[kChannelBlock * kChannelsAtOnce * kTaps];
    source.weight = piece;
    source.lane_stride = kChannelsAtOnce * kTaps;
    for (int64_t c = 0; c < header_.group_in_channels; c += kChannelsAtOnce) {
      source.channels = std::min<int64_t>(kChannelsAtOnce, header_.group_in_channels - c);
      gather(first, lanes, {c, c + source.channels}, piece);
      kernels_.pack_winograd(source, target + c * kChannelBlock, count() * stride());
    }
  }

 private:
  static constexpr int64_t kTaps = 9;

  // To [lanes][kChannelsAtOnce][taps].
  void gather(int64_t first, int64_t lanes, Range channels, float* piece) const {
    const WeightView& w = weight_;
    const int64_t lane_stride = transposed_ ? w.stride_c : w.stride_k;
    const int64_t channel_stride = transposed_ ? w.stride_k : w.stride_c;
    for (int64_t c = channels.begin; c < channels.end; ++c) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const float* from = w.data + (first + lane) * lane_stride + c * channel_stride;
        float* to = piece + (lane * kChannelsAtOnce + c - channels.begin) * kTaps;
        for (int64_t tap = 0; tap < kTaps; ++tap) {
          const int64_t at = transposed_ ? kTaps - 1 - tap : tap;
          to[tap] = from[at / 3 * w.stride_r + at % 3 * w.stride_s];
        }
      }
    }
  }

  const Microkernels& kernels_;
  const WeightView& weight_;
  const bool transposed_;
  const PackedHeader header_;
  float ones_[kChannelBlock];
};

}  // namespace

Taps all_taps(int64_t count) {
  Taps taps(static_cast<size_t>(count));
  std::iota(taps.begin(), taps.end(), 0);
  return taps;
}

PackedHeader header_of(const WeightView& weight, bool transposed, const Taps& rows,
                       const Taps& cols, bool winograd) {
  const int64_t out = transposed ? weight.group_in_channels : weight.group_out_channels();
  const int64_t in = transposed ? weight.group_out_channels() : weight.group_in_channels;
  PackedHeader header;
  header.layout = winograd                                    ? PackedLayout::winograd
                  : uses_lanes_layout(out, in, weight.groups) ? PackedLayout::lanes
                                                              : PackedLayout::igemm;
  header.out_channels = static_cast<int32_t>(out * weight.groups);
  header.group_in_channels = static_cast<int32_t>(in);
  header.kernel_h = static_cast<int32_t>(rows.size());
  header.kernel_w = static_cast<int32_t>(cols.size());
  header.groups = static_cast<int32_t>(weight.groups);
  return header;
}

void pack_weight(const Microkernels& kernels, const WeightView& weight, bool transposed,
                 const Taps& rows, const Taps& cols, float* target, bool winograd) {
  if (winograd) {
    const WinogradBlocks blocks(kernels, weight, transposed);
    return parallel_blocks(blocks, [&](int64_t b) { blocks.pack(b, target); });
  }
  const Blocks blocks(weight, transposed, rows, cols);
  if (!transposed && is_contiguous(weight)) {
    return parallel_blocks(blocks, [&](int64_t b) {
      pack_contiguous_block(kernels, weight, blocks[b], target + b * blocks.stride());
    });
  }
  parallel_block_ranges(blocks, [&](Range range) { pack_range(blocks, range, target); });
}

void unpack_weight(const Microkernels& kernels, const float* packed, const WeightView& weight) {
  const Blocks blocks(weight, false, all_taps(weight.kernel.h), all_taps(weight.kernel.w));
  parallel_blocks(blocks, [&](int64_t b) {
    const Block block = blocks[b];
    const float* from = packed + b * blocks.stride();
    if (block.taps.size() == 1 && block.in_stride == 1) {
      return unpack_pointwise_block(kernels, from, block);
    }
    for_each_element(block, const_cast<float*>(from),
                     [](const float& element, float& to) { to = element; });
  });
}

}  // namespace fastres::cpu

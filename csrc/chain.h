// The arguments of bottleneck_chain and live_bottleneck_chain, taken apart block by block.

#pragma once

#include <numeric>
#include <string>
#include <vector>

#include "checks.h"

namespace fastres {

inline constexpr const char* kChainOp = "bottleneck_chain";
inline constexpr const char* kLiveChainOp = "live_bottleneck_chain";

// What both have but for x, constants and the activation.
struct ChainGeometry {
  const std::vector<int64_t>& convs;
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& dilation;
  const std::vector<int64_t>& groups;
};

struct ChainArguments {
  const Tensor& packed;
  const Tensor& shift;
  const std::vector<int64_t>& sizes;
  const std::vector<int64_t>& channels;
  ChainGeometry geometry;
};

struct LiveChainArguments {
  const std::vector<Tensor>& weights;
  const Tensor& scale;
  const Tensor& shift;
  const std::vector<std::string>& algorithms;
  ChainGeometry geometry;
};

// Where a convolution's constants are: bytes of the packed weights, elements of the shifts.
struct ChainConv {
  int64_t packed, size;
  int64_t shift, channels;
};

// Of a live chain: elements of scale and shift.
struct LiveChainConv {
  const Tensor* weight;
  int64_t first, channels;
};

// A block and its convolutions: conv1, conv2, conv3 and perhaps the shortcut's.
template <class Conv>
struct ChainBlock {
  std::vector<Conv> convs;
  std::vector<int64_t> stride, dilation;
  int64_t groups;
  std::string name;  // that messages begin with
};

// Packed weights that are joined begin at multiples of a header's size, which is a cache line's.
inline int64_t joined_bytes(int64_t size) {
  constexpr auto kLine = static_cast<int64_t>(sizeof(PackedHeader));
  return (size + kLine - 1) / kLine * kLine;
}

inline void check_count(size_t count, size_t expected, const char* op, const char* name) {
  check(count == expected, op, ": ", name, " must have ", expected, " elements, got ", count);
}

// Checks all counts; returns how many convolutions there are.
inline size_t check_geometry(const ChainGeometry& g, const char* op) {
  check(!g.convs.empty(), op, ": convs must have at least one element, got none");
  for (const int64_t count : g.convs) {
    check(count == 3 || count == 4, op, ": convs must be 3 or 4 of each block, got ", count);
  }
  check_count(g.stride.size(), 2 * g.convs.size(), op, "stride");
  check_count(g.dilation.size(), 2 * g.convs.size(), op, "dilation");
  check_count(g.groups.size(), g.convs.size(), op, "groups");
  return static_cast<size_t>(std::accumulate(g.convs.begin(), g.convs.end(), int64_t{0}));
}

inline void check_chain(const ChainArguments& a) {
  const size_t all = check_geometry(a.geometry, kChainOp);
  check_count(a.sizes.size(), all, kChainOp, "sizes");
  check_count(a.channels.size(), all, kChainOp, "channels");
  int64_t bytes = 0, shifts = 0;
  for (size_t i = 0; i < all; ++i) {
    check(a.sizes[i] > 0, kChainOp, ": sizes must be positive, got ", a.sizes[i]);
    check(a.channels[i] > 0, kChainOp, ": channels must be positive, got ", a.channels[i]);
    // Before they are added: their sum must not overflow.
    check(a.sizes[i] <= a.packed.numel(), kChainOp,
          ": packed must be what join_packed returned, got ", a.packed.numel(),
          " bytes for a size of ", a.sizes[i]);
    check(a.channels[i] <= a.shift.numel(), kChainOp, ": shift must have all channels, got shape ",
          ShapeOf{a.shift}, " for channels of ", a.channels[i]);
    bytes += joined_bytes(a.sizes[i]);
    shifts += a.channels[i];
  }
  check(a.packed.dim() == 1 && a.packed.scalar_type() == ScalarType::Byte &&
            a.packed.is_contiguous() && a.packed.numel() == bytes,
        kChainOp, ": packed must be what join_packed returned (1-D uint8 of ", bytes,
        " bytes, by sizes), got ", torch::headeronly::toString(a.packed.scalar_type()),
        " of shape ", ShapeOf{a.packed});
  check_shift(a.shift, shifts, kChainOp, "shift");
}

inline void check_chain(const LiveChainArguments& a) {
  const size_t all = check_geometry(a.geometry, kLiveChainOp);
  check_count(a.weights.size(), all, kLiveChainOp, "weights");
  check_count(a.algorithms.size(), a.geometry.convs.size(), kLiveChainOp, "algorithms");
  int64_t channels = 0;
  for (size_t i = 0; i < all; ++i) {
    check(a.weights[i].dim() == 4, kLiveChainOp, ": weights[", i,
          "] must be 4-D [K, C/groups, R, S], got shape ", ShapeOf{a.weights[i]});
    channels += a.weights[i].size(0);
  }
  check_shift(a.scale, channels, kLiveChainOp, "scale");
  check_shift(a.shift, channels, kLiveChainOp, "shift");
}

inline std::vector<ChainConv> convs_of(const ChainArguments& a) {
  std::vector<ChainConv> convs;
  int64_t packed = 0, shift = 0;
  for (size_t i = 0; i < a.sizes.size(); ++i) {
    convs.push_back({packed, a.sizes[i], shift, a.channels[i]});
    packed += joined_bytes(a.sizes[i]);
    shift += a.channels[i];
  }
  return convs;
}

inline std::vector<LiveChainConv> convs_of(const LiveChainArguments& a) {
  std::vector<LiveChainConv> convs;
  int64_t first = 0;
  for (const Tensor& weight : a.weights) {
    convs.push_back({&weight, first, weight.size(0)});
    first += weight.size(0);
  }
  return convs;
}

// Calls use(i, block) for each block.
template <class Arguments, class Use>
void for_each_block(const char* op, const Arguments& a, const Use& use) {
  check_chain(a);
  const auto convs = convs_of(a);
  const ChainGeometry& g = a.geometry;
  auto next = convs.begin();
  for (size_t i = 0; i < g.convs.size(); ++i) {
    const auto first = next;
    next += g.convs[i];
    use(i, ChainBlock{std::vector(first, next),
                      {g.stride[2 * i], g.stride[2 * i + 1]},
                      {g.dilation[2 * i], g.dilation[2 * i + 1]},
                      g.groups[i],
                      std::string(op) + ": block " + std::to_string(i)});
  }
}

}  // namespace fastres

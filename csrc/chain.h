// The arguments of bottleneck_chain, taken apart block by block.

#pragma once

#include <numeric>
#include <string>
#include <vector>

#include "checks.h"

namespace fastres {

inline constexpr const char* kChainOp = "bottleneck_chain";

struct ChainArguments {
  const Tensor& packed;
  const Tensor& shift;
  const std::vector<int64_t>& sizes;
  const std::vector<int64_t>& channels;
  const std::vector<int64_t>& convs;
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& dilation;
  const std::vector<int64_t>& groups;
};

// Where a convolution's constants are: bytes of the packed weights, elements of the shifts.
struct ChainConv {
  int64_t packed, size;
  int64_t shift, channels;
};

struct ChainBlock {
  std::vector<ChainConv> convs;  // conv1, conv2, conv3 and perhaps the shortcut's
  std::vector<int64_t> stride, dilation;
  int64_t groups;
  std::string name;  // that messages begin with
};

// Packed weights that are joined begin at multiples of a header's size, which is a cache line's.
inline int64_t joined_bytes(int64_t size) {
  constexpr auto kLine = static_cast<int64_t>(sizeof(PackedHeader));
  return (size + kLine - 1) / kLine * kLine;
}

inline void check_chain(const ChainArguments& a) {
  check(!a.convs.empty(), kChainOp, ": convs must have at least one element, got none");
  for (const int64_t count : a.convs) {
    check(count == 3 || count == 4, kChainOp, ": convs must be 3 or 4 of each block, got ", count);
  }
  const auto all = static_cast<size_t>(std::accumulate(a.convs.begin(), a.convs.end(), int64_t{0}));
  const auto check_count = [](size_t count, size_t expected, const char* name) {
    check(count == expected, kChainOp, ": ", name, " must have ", expected, " elements, got ",
          count);
  };
  check_count(a.sizes.size(), all, "sizes");
  check_count(a.channels.size(), all, "channels");
  check_count(a.stride.size(), 2 * a.convs.size(), "stride");
  check_count(a.dilation.size(), 2 * a.convs.size(), "dilation");
  check_count(a.groups.size(), a.convs.size(), "groups");
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

// Calls run(input, block) for each block with what the one before returned.
template <class Run>
Tensor run_chain(const Tensor& x, const ChainArguments& a, const Run& run) {
  check_chain(a);
  Tensor y = x;
  int64_t packed = 0, shift = 0;
  size_t conv = 0;
  for (size_t i = 0; i < a.convs.size(); ++i) {
    ChainBlock block{{},
                     {a.stride[2 * i], a.stride[2 * i + 1]},
                     {a.dilation[2 * i], a.dilation[2 * i + 1]},
                     a.groups[i],
                     std::string(kChainOp) + ": block " + std::to_string(i)};
    for (const size_t end = conv + static_cast<size_t>(a.convs[i]); conv < end; ++conv) {
      block.convs.push_back({packed, a.sizes[conv], shift, a.channels[conv]});
      packed += joined_bytes(a.sizes[conv]);
      shift += a.channels[conv];
    }
    y = run(y, block);
  }
  return y;
}

}  // namespace fastres

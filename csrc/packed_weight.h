// The packed weight: a header that says which convolution it is of, then values.
//
// The layout is the same on every instruction set, so a packed weight can be saved on one machine
// and used on another. fastres/reference/packing.py reads the same layouts in Python.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastres {

// Output channels come in blocks of this many, whatever the vector width.
constexpr int64_t kChannelBlock = 16;

enum class PackedLayout : int32_t {
  // [K, C/groups, R, S]: what the reference makes. No kernel reads it.
  plain = 0,
  // [groups][ceil(Kg/16)][R][S][Cg][16]: a register tile broadcasts an input value and multiplies
  // it with 16 output channels of the same group.
  igemm = 1,
  // [ceil(K/16)][R][S][Cg][16], for narrow groups with Kg == Cg: lane l multiplies the input of its
  // own group, so that several groups share a vector.
  lanes = 2,
  // [16][ceil(K/16)][C][16]: the 4x4 Winograd transforms of a dense 3x3, for stride 1.
  winograd = 3,
  // [K][R * S * Cg, padded with zeros to a multiple of 8], three times: float32, bfloat16, float16,
  // then kKrscTail zero bytes. What CUDA kernels read, each the copy of its input's dtype, which
  // autocast decides at every call. The tail gives it a size that no other layout has, and so tells
  // it from them where the header cannot be read, on a GPU.
  krsc = 4,
  // [groups][Kg/32][R][S][Cg/32][2][16][16][2], bfloat16: of 32 output channels and 32 input
  // channels what a matrix tile takes, blocks of 16 output channels, in which every row has two
  // input channels of each.
  bfloat16 = 5,
};

// What both numbers of channels of a group are multiples of in PackedLayout::bfloat16.
constexpr int64_t kBfloat16Channels = 32;
// Blocks of so many output channels.
constexpr int64_t kBfloat16PanelBlocks = kBfloat16Channels / kChannelBlock;

// Multiplications of one 4x4 tile of F(2x2, 3x3).
constexpr int64_t kWinogradPositions = 16;

struct PackedHeader {
  static constexpr int32_t kMagic = 0x53525446;  // "FTRS"
  static constexpr int32_t kVersion = 1;

  int32_t magic = kMagic;
  int32_t version = kVersion;
  PackedLayout layout = PackedLayout::igemm;
  int32_t payload_dtype = 0;  // 0 float32, 1 float64 (plain only)
  int32_t out_channels = 0;
  int32_t group_in_channels = 0;
  int32_t kernel_h = 0;
  int32_t kernel_w = 0;
  int32_t groups = 0;
  int32_t reserved[7] = {};

  int64_t group_out_channels() const { return out_channels / groups; }
  bool suits_bfloat16() const {
    return group_out_channels() % kBfloat16Channels == 0 &&
           group_in_channels % kBfloat16Channels == 0;
  }
  int64_t taps() const { return int64_t{kernel_h} * kernel_w; }

  // Blocks of output channels that one group has (igemm) or that the whole tensor has (lanes).
  int64_t blocks() const {
    const int64_t channels = layout == PackedLayout::lanes ? out_channels : group_out_channels();
    return (channels + kChannelBlock - 1) / kChannelBlock;
  }
  // Floats from one block of output channels to the next.
  int64_t block_stride() const {
    const int64_t values = layout == PackedLayout::winograd ? 1 : taps();
    return values * group_in_channels * kChannelBlock;
  }

  // krsc only.
  static constexpr int64_t kKrscTail = 16;
  int64_t krsc_values() const {
    return int64_t{out_channels} * ((group_in_channels * taps() + 7) / 8 * 8);
  }
  // Bytes from the packed weight's start to its float32 (0), bfloat16 (1) or float16 (2) copy.
  int64_t krsc_offset(int copy) const {
    const int64_t before[] = {0, 4, 6};
    return static_cast<int64_t>(sizeof(PackedHeader)) + before[copy] * krsc_values();
  }

  int64_t payload_bytes() const {
    if (layout == PackedLayout::krsc) return 8 * krsc_values() + kKrscTail;
    if (layout == PackedLayout::bfloat16) return 2 * all_values();
    return static_cast<int64_t>(sizeof(float)) * payload_floats();
  }

  int64_t all_values() const { return int64_t{out_channels} * group_in_channels * taps(); }

  // As many as take the payload's bytes.
  int64_t payload_floats() const {
    if (layout == PackedLayout::plain) return all_values();
    if (layout == PackedLayout::bfloat16) return all_values() / 2;
    const int64_t copies = layout == PackedLayout::lanes      ? 1
                           : layout == PackedLayout::winograd ? kWinogradPositions
                                                              : groups;
    return copies * blocks() * block_stride();
  }
};
static_assert(sizeof(PackedHeader) == 64, "the payload starts on a cache line");

inline PackedHeader read_packed_header(const void* packed) {
  PackedHeader header;
  std::memcpy(&header, packed, sizeof(header));
  return header;
}

inline const float* packed_payload(const void* packed) {
  return reinterpret_cast<const float*>(static_cast<const char*>(packed) + sizeof(PackedHeader));
}

// Groups this narrow would leave most of a 16-lane block empty.
inline bool uses_lanes_layout(int64_t group_out, int64_t group_in, int64_t groups) {
  return groups > 1 && group_out == group_in && group_in <= 8 && (group_in & (group_in - 1)) == 0;
}

}  // namespace fastres

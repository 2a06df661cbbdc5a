// Convolutions on matrix tiles of bfloat16 (Intel AMX).
//
// Of bfloat16 tensors each value is one part: a product of two is exact in float32, in which tiles
// sum them. What is not bfloat16 already, weights times a scale and inner activations, is rounded.
//
// A float32 is the sum of three bfloat16 parts, high + middle + low: 3 x 8 binary digits. Of the
// nine products of two such sums the six largest are added up in float32; what is left out is below
// 2^-25 of a product, half of float32's own rounding. (Henry, Tang, Heinecke: Leveraging the
// bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations, 2019.) A tile
// multiplies sixteen times as fast as fused multiply-adds, so six products still take 0.4 of their
// time. Infinities, NaNs and values that round to an infinity have no such parts: they are found,
// and left to the other kernels. Parts below float32's normal range count as zero.

#pragma once

#include <cstddef>
#include <cstdint>

namespace fastres::cpu {

struct ConvTile;
enum class StorageType;

// Its bits.
using Bfloat16 = uint16_t;

constexpr int64_t kFloat32Parts = 3;
constexpr int64_t kBfloat16Parts = 1;
// Channels that a row of a tile holds; the last ones of a plane that has fewer are zero.
constexpr int64_t kSplitChannels = 32;
// Values of one part of 32 input channels x 16 output channels.
constexpr int64_t kSplitBlock = kSplitChannels * 16;
// Positions that are multiplied together. A call may read as many beyond the last one.
constexpr int64_t kSplitPositions = 32;

[[gnu::always_inline]] inline int64_t split_chunks(int64_t channels) {
  return (channels + kSplitChannels - 1) / kSplitChannels;
}

// Pixels to planes [chunk of 32 channels][part][position][32 channels]. Three parts have a channel
// and the sixteenth after it side by side; one has the channels in order.
struct SplitPixels {
  const float* input;
  const Bfloat16* input16;  // in place of `input`, to one part; null where that is used
  bool must_be_finite;      // to one part: an infinity times a zero weight is none
  ptrdiff_t row_stride;
  ptrdiff_t pixel_stride;
  ptrdiff_t image_stride;
  int64_t images;
  int64_t rows;
  int64_t pixels;
  int64_t channels;
  Bfloat16* planes;
  ptrdiff_t plane_stride;  // values from one plane to the next
  int64_t row_positions;   // from one row to the next
};

// Packed weights (PackedLayout::igemm) to [tap][chunk of 32 input channels][part][block]
// [16 pairs of input channels][16 output channels][2], of the pairs that the pixels have.
//
// A block of narrow groups has as many input channels as output channels, sixteen, and zeros
// between channels of different groups. It fills one half of its chunk, two blocks one each; the
// other one is zero.
struct SplitWeights {
  const float* weights;
  ptrdiff_t block_stride;
  ptrdiff_t tap_stride;
  int64_t blocks;  // 1 or 2, of 16 output channels
  int64_t taps;
  int64_t channels;
  int64_t group_width;  // of narrow groups, to one part: [tap][group_width][16]; 0 for others
  int64_t half;         // the one that the first block fills
  Bfloat16* target;
};

// Sixteen output channels of a weight that is not packed, whose input channels, a multiple of
// thirty-two, are adjacent: to one part, a block of each chunk of them.
struct WeightRows {
  const void* rows;
  StorageType type;
  ptrdiff_t row_stride;  // values from one output channel to the next
  int64_t channels;
  const float* scale;  // sixteen
  Bfloat16* target;
  ptrdiff_t chunk_stride;  // values from one chunk's block to the next
};

// A weight's gradient sums products over pixels, which then are what input channels are to a
// convolution: thirty-two at a time. The gradient of the output takes the weights' place, in planes
// [chunk of 32 pixels][part][block of 16 channels][pair of pixels][16 channels][2], and the input
// that of the pixels, transposed, in planes [chunk of 32 pixels][part][channel][32 pixels]. Both
// are made of a SplitPixels; row_positions is unused, and the last block's other channels are zero.
// These alone walk over several images.

struct SplitTile {
  const Bfloat16* input;
  ptrdiff_t plane_stride;
  const int64_t* taps;  // positions that each tap is after the output's
  int64_t tap_count;
  int64_t chunks;
  const Bfloat16* weights;
  int64_t blocks;
  int64_t row_positions;  // from one row of outputs to the next; those beyond its pixels are unused
  ptrdiff_t chunk_stride;         // values from one chunk's weights to the next's
  ptrdiff_t part_stride;          // from one part of them to the next
  ptrdiff_t output_block_stride;  // of outputs and residuals, between blocks of 16 channels
  // Of 32 output channels each, all for the same positions before the next: with several, a pixel's
  // outputs are written one after the other.
  int64_t panels;
  ptrdiff_t panel_stride;    // values from one panel's weights to the next's
  const SplitWeights* next;  // are split meanwhile; not of narrow groups; null for none
};

struct SplitKernels {
  int64_t parts;
  // All return whether all values have parts; as one part any value has, but for pixels that must
  // be finite.
  bool (*split_pixels)(const SplitPixels&);
  bool (*split_weights)(const SplitWeights&);
  void (*round_weight_rows)(const WeightRows&);  // null with three parts
  bool (*split_columns)(const SplitPixels&);
  bool (*split_transposed)(const SplitPixels&);
  // `output` says what is made of the products; its input and weights are not read. What comes next
  // is what may have no parts.
  bool (*multiply)(const SplitTile&, const ConvTile& output);
};

}  // namespace fastres::cpu

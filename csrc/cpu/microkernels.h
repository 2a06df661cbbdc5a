// The innermost loops, behind one table of functions per instruction set.
//
// Each .cpp in microkernels/ is written once over the compiler's vector extension and built once
// per instruction set, in a namespace of its own. Raw pointers and strides in floats; no torch.

#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/isa.h"

namespace fastres::cpu {

enum class Activation { none, relu, relu6, silu, leaky_relu };

enum class StorageType { float32, bfloat16, float16 };

inline int64_t element_bytes(StorageType type) { return type == StorageType::float32 ? 4 : 2; }

// Adjacent floats that will be read or written soon.
struct FloatSpan {
  const float* data = nullptr;
  int64_t count = 0;
  int64_t rows = 1;  // of `count` values each
  ptrdiff_t row_stride = 0;
};

// What to fetch into the level-2 cache while something else is computed.
struct FetchList {
  static constexpr int kSpans = 8;
  FloatSpan spans[kSpans];
};

// One band of output rows for one panel of output channels.
struct ConvTile {
  // First input value of the first output pixel, padding included: the band is already padded.
  const float* input;
  ptrdiff_t input_row_stride;    // between output rows (vertical stride included)
  ptrdiff_t input_pixel_stride;  // between output pixels (horizontal stride included)
  // The taps of the kernel: tap (r, s) reads `channels` values at r*tap_row + s*tap_col.
  int64_t tap_rows;
  int64_t tap_cols;
  ptrdiff_t tap_row_stride;
  ptrdiff_t tap_col_stride;
  int64_t channels;

  const float* weights;
  ptrdiff_t weight_block_stride;  // between blocks of 16 output channels
  const float* shift;

  const float* residual;  // null for none
  ptrdiff_t residual_row_stride;
  ptrdiff_t residual_pixel_stride;

  FetchList upcoming;

  float* output;
  ptrdiff_t output_row_stride;
  ptrdiff_t output_pixel_stride;

  // In place of `residual` and `output`, with their strides, bfloat16 values; null where those are
  // used. Of matrix tiles that multiply bfloat16 values.
  const uint16_t* residual16;
  uint16_t* output16;

  int64_t rows;
  int64_t pixels;
  int64_t out_channels;  // of this panel; lanes: all that are left
  Activation act;
  float act_slope;
};

// Winograd's F(2x2, 3x3) over the tiles of a band, channels innermost. A tile makes 2x2 outputs of
// 4x4 inputs; tiles overhang where the band's sizes are odd.
struct WinogradTiles {
  int64_t tile_rows;
  int64_t tile_cols;
  int64_t channels;
  // Transformed values: [16][tile_rows * tile_cols][channels], `position_stride` floats between
  // the sixteen and `tile_stride` between tiles.
  float* transformed;
  ptrdiff_t position_stride;
  ptrdiff_t tile_stride;

  float* at(int64_t position, int64_t tile) const {
    return transformed + position * position_stride + tile * tile_stride;
  }
};

// The weights of up to sixteen output channels, `lane_stride` floats apart: each [channels][taps],
// or [taps][channels] where taps are outside.
struct PackSource {
  const float* weight;
  ptrdiff_t lane_stride;
  int64_t lanes;
  int64_t channels;
  int64_t taps;
  bool taps_outside;
  const float* scale;    // sixteen
  int64_t tap_channels;  // that the packed taps are apart; 0 for `channels`
};

// Products of the rows of a matrix with a few vectors.
struct DotTile {
  const float* row;
  ptrdiff_t row_stride;
  int64_t rows;
  const float* vector;
  ptrdiff_t vector_stride;
  int64_t vectors;
  int64_t length;
  float* sums;  // [rows][vectors], added to
  ptrdiff_t sums_stride;
};

// One row of a max-pooling's output.
struct PoolRow {
  const float* input;  // the window's first row inside the image, pixel 0
  ptrdiff_t row_stride;
  ptrdiff_t pixel_stride;
  int64_t rows;   // of the window, inside the image
  int64_t width;  // of the image
  int64_t kernel_w, stride_w, padding_w;
  int64_t channels;
  float* output;  // dense
  int64_t pixels;
};

struct SplitKernels;

struct Microkernels {
  // Output channels of one igemm panel: what a register tile holds.
  int64_t panel_channels;
  // The same of another tile, for pixels that are a power of two apart: at most so many of them.
  int64_t wide_panel_channels;
  int64_t wide_panel_pixels;

  // Dense convolution of one group; out_channels <= panel_channels, or those of the wide panel.
  void (*igemm)(const ConvTile&);
  // Convolution of all groups of the lanes layout, `group_width` in {1, 2}.
  void (*lanes)(const ConvTile&, int64_t group_width);
  // The same for `group_width` in {4, 8}, of arranged weights.
  void (*grouped)(const ConvTile&, int64_t group_width);
  // Brings blocks of the lanes layout to the order that `grouped` takes them in.
  void (*arrange_grouped)(const float* packed, int64_t blocks, int64_t taps, int64_t group_width,
                          float* arranged);
  void (*dot)(const DotTile&);
  // Transforms `rows` x `pixels` input pixels; what a tile reads beyond them is zero.
  void (*winograd_input)(const WinogradTiles&, const float* input, ptrdiff_t row_stride,
                         ptrdiff_t pixel_stride, int64_t rows, int64_t pixels);
  // Transforms the products back and finishes the tile's output: shift, residual, activation.
  void (*winograd_output)(const WinogradTiles&, const ConvTile& output);
  // One block of the packed layouts, times the scale; lanes beyond `lanes` become zero. Winograd's
  // sixteen positions of a block are `position_stride` floats apart.
  void (*pack_direct)(const PackSource&, float* block);
  void (*pack_winograd)(const PackSource&, float* block, ptrdiff_t position_stride);
  // Storage to float32 and back, `count` values.
  void (*widen)(const void* source, StorageType type, float* target, int64_t count);
  void (*narrow)(const float* source, StorageType type, void* target, int64_t count);
  void (*max_pool)(const PoolRow&);
  // 64-bit hash of `bytes` bytes.
  uint64_t (*hash)(const void* data, size_t bytes);
  // Runs `iterations` rounds of independent fused multiply-adds and returns the FLOPs done.
  double (*fma_burn)(int64_t iterations);
  // Dense convolution on matrix tiles, in place of igemm where that is faster; null for none.
  const SplitKernels* split = nullptr;
};

// For operators on tensors of `type`.
const Microkernels& microkernels_for(Isa isa, StorageType type);
inline const Microkernels& selected_microkernels(StorageType type = StorageType::float32) {
  return microkernels_for(selected_isa(), type);
}

}  // namespace fastres::cpu

// What the kernels are launched with: plain structs that host and device share. No torch, no CUDA.
//
// Tensors are dense channels_last ([N, H, W, C] in memory). "Chunk": 16 bytes of one pixel's
// channels, what one thread moves at once.

#pragma once

#include <cstdint>

namespace fastres::cuda {

enum class Activation : int32_t { none, relu, relu6, silu, leaky_relu };

// Parts of a launch that both sides have to agree on.
constexpr int kChunkBytes = 16;
constexpr int kTileRowBytes = 64;  // of one row (a pixel or an output channel) in a stage
constexpr int kStages = 4;

// Shared memory that the common epilogue and conv_gemm need.
constexpr int epilogue_bytes(int bm, int bn, int threads) {
  return bm * bn * 4 + bm * 8 + threads / 32 * bn * 8;
}
constexpr int conv_gemm_bytes(int bm, int bn, int threads) {
  const int stages = kStages * (bm + bn) * kTileRowBytes, tail = epilogue_bytes(bm, bn, threads);
  return stages > tail ? stages : tail;
}

// A tensor as a kernel loads it: act((x - mean) * scale * scale_factor + bias * bias_factor) +
// addend * addend_scale. The prologue of a training convolution is one, and so is the gradient of a
// convolution's output, grad_y * grad_scale + grad_mean / n + 2 * grad_m2 * (y - mean), with y for
// x and grad_y for the addend.
struct Source {
  const void* x;
  const void* addend;         // or null
  const float* mean;          // null: no affine
  const float* scale;         // null: 0
  const float* bias;          // null: 0
  const float* addend_scale;  // null: 1
  float scale_factor;
  float bias_factor;
  Activation act;
  float act_slope;

  // What is loaded is what is stored.
#ifdef __CUDACC__
  __host__ __device__
#endif
      bool plain() const {
    return mean == nullptr && addend == nullptr && act == Activation::none;
  }
};

enum class EpilogueKind : int32_t {
  inference,   // out = act(value + shift + residual)
  statistics,  // out = value, and per tile and channel its mean and M2
  // out = (value + residual) * act'(before) * scale, and per tile and channel two sums
  input_gradient,
};

// What becomes of a convolution's float32 result, tile by tile.
struct Epilogue {
  EpilogueKind kind;
  Activation act;
  float act_slope;
  int32_t channels;  // of out: from one pixel to the next
  void* out;
  const void* residual;  // or null, like all below
  const float* shift;
  // input_gradient: before = (x - mean) * scale + bias + shortcut, x with the shape of out. With a
  // shortcut, out is left unmultiplied by scale: it is the shortcut's gradient too.
  const void* x;
  const void* shortcut;
  const float* mean;
  const float* scale;
  const float* bias;
  // [tiles][channels][2]: mean and M2, or the sums of g and of g * (x - mean).
  float* partial;
  int32_t* counts;  // statistics: [tiles], the pixels of each
};

struct Window {
  int32_t kernel_h, kernel_w;
  int32_t stride_h, stride_w;
  int32_t dilation_h, dilation_w;
  int32_t pad_top, pad_left;
};

// conv_gemm: out[pixel][k] = sum over taps and c of source[pixel at tap][c] * weight[k][tap][c].
struct ConvGemmParams {
  Source source;
  const void* weight;  // [groups * out_channels][pitch]
  Epilogue epilogue;
  Window window;
  int32_t batch;
  int32_t in_h, in_w;    // of the source
  int32_t out_h, out_w;  // of the result
  int32_t in_channels;   // a group's
  int32_t out_channels;  // a group's
  int32_t groups;
  int32_t pitch;  // elements from one weight row to the next
  // The source is read at (h + pad - r * dilation) / stride where that is whole: the data gradient,
  // where `window` is of the forward convolution.
  int32_t transposed;
  // Pixels whose coordinates leave the same remainders by these share a tile, so that a transposed
  // convolution skips the taps that miss; 1 and 1 for all others.
  int32_t classes_h, classes_w;
  int32_t gather;   // channels are not whole chunks: loads go element by element
  int32_t n_tiles;  // tiles of output channels, one group's
  int32_t m_tiles;  // tiles of pixels, one class's
};

// grouped_conv: a 3x3 convolution with 4, 8, 16 or 32 channels a group, in and out.
struct GroupedConvParams {
  Source source;
  const void* weight;  // [channels][pitch], of (tap, channel of the group)
  Epilogue epilogue;
  Window window;  // of the loop: stride 1 when `upsample` is used
  int32_t batch;
  int32_t in_h, in_w;
  int32_t out_h, out_w;
  int32_t channels;
  int32_t pitch;
  // Zeros between the source's pixels, for the data gradient of a stride: pixel (h, w) is the
  // source's (h / upsample_h, w / upsample_w) where both are whole.
  int32_t upsample_h, upsample_w;
  int32_t tile_h;  // output rows of a block, even, at most kGroupedTileHeight
  int32_t tiles_h, tiles_w;
  int32_t patch_h, patch_w;  // source pixels of a block, halo included
};

// A block computes kGroupedBytes of channels of tile_h x 8 pixels: eight, so that the eight rows of
// an ldmatrix are neighbours, which lie in different banks.
constexpr int kGroupedBytes = 128;
constexpr int kGroupedTileWidth = 8;
constexpr int kGroupedTileHeight = 16;
constexpr int grouped_channels(int element_bytes) { return kGroupedBytes / element_bytes; }
// Two columns of 8 output channels a warp where a group is 32 wide: they read the same input.
constexpr int grouped_columns(int width, int element_bytes) {
  return width == 32 && element_bytes == 2 ? 2 : 1;
}
constexpr int grouped_threads(int width, int element_bytes) {
  return grouped_channels(element_bytes) / 8 / grouped_columns(width, element_bytes) * 32;
}
constexpr int grouped_conv_bytes(int patch_pixels, int width, int element_bytes) {
  const int tail =
      epilogue_bytes(kGroupedTileWidth * kGroupedTileHeight, grouped_channels(element_bytes),
                     grouped_threads(width, element_bytes));
  const int patch = patch_pixels * kGroupedBytes;
  return patch > tail ? patch : tail;
}

// One of a bottleneck's convolutions: rows of (tap, channel), and what is added to their products.
struct BottleneckWeight {
  const void* data;  // null: there is no such convolution
  const float* shift;
  int32_t pitch;
};

// grouped_bottleneck: a whole block in one kernel; see kernels/grouped_bottleneck.cuh.
struct BottleneckParams {
  const void* x;
  BottleneckWeight reduce, spatial, expand, down;  // expand's shift is the epilogue's
  Epilogue epilogue;
  Window window;  // of the 3x3
  Activation act;
  float slope;
  int32_t batch;
  int32_t in_h, in_w;
  int32_t out_h, out_w;
  int32_t in_channels, width, out_channels;
  int32_t tile_h;  // output rows of a block, even, at most kGroupedTileHeight
  int32_t tiles_h, tiles_w;
  int32_t patch_h, patch_w;  // pixels of x of a block, halo included
};

constexpr int kBottleneckThreads = 256;
constexpr int kBottleneckPixels = kGroupedTileWidth * kGroupedTileHeight;
// The stages of its products, where the epilogue's tile lies too.
constexpr int bottleneck_stage_bytes(int channels) {
  const int stages = kStages * (kBottleneckPixels + channels) * kTileRowBytes;
  const int tail = epilogue_bytes(kBottleneckPixels, channels, kBottleneckThreads);
  return stages > tail ? stages : tail;
}

// conv_wgrad: partial[split][k][tap][c] = sum over the split's pixels of gradient[pixel][k] *
// source[pixel at tap][c].
struct WgradParams {
  Source gradient;
  Source source;
  float* partial;
  Window window;
  int32_t batch;
  int32_t in_h, in_w;
  int32_t out_h, out_w;
  int32_t in_channels;   // a group's
  int32_t out_channels;  // a group's
  int32_t groups;
  int32_t gather;  // some chunk is not whole: loads go element by element
  int32_t m_tiles, n_tiles;
  int64_t pixels_per_split;
};

// A block computes 64 output channels times 64 columns. Each of its parts takes wgrad_pixels()
// pixels in turn, and in the end their sums are added up: what is written as partial sums is half
// of what as many threads in blocks of their own would leave.
constexpr int kWgradTile = 64;
constexpr int kWgradParts = 2;
constexpr int kWgradThreads = kWgradParts * 128;
constexpr int wgrad_pixels(int element_bytes) { return 64 / element_bytes; }
constexpr int kWgradPartBytes = 2 * 2 * kWgradTile * 64;  // two buffers of two operands
constexpr int kWgradBytes = kWgradParts * kWgradPartBytes;

// grouped_wgrad: the same for the convolutions of grouped_conv; partial[split][channel][tap][c].
struct GroupedWgradParams {
  Source gradient;
  Source source;
  float* partial;
  Window window;
  int32_t batch;
  int32_t in_h, in_w;
  int32_t out_h, out_w;
  int32_t channels;
  int32_t tile_h;
  int32_t tiles_h, tiles_w;
  int32_t patch_h, patch_w;
  int64_t tiles_per_split;
};

// A warp has 16 output channels and 16 input channels that may share a group with them.
constexpr int grouped_wgrad_threads(int width, int element_bytes) {
  return grouped_channels(element_bytes) / 16 * (width == 32 ? 2 : 1) * 32;
}

// pack_weight: out[row][tap][column], rows padded with zeros to `pitch`.
struct PackWeightParams {
  const void* weight;  // [K, C/groups, R, S]
  const float* scale;  // [K] or null
  int64_t stride_k, stride_c, stride_r, stride_s;
  int32_t out_channels, group_in_channels, kernel_h, kernel_w, groups;
  int32_t pitch;
  // Rows are input channels and columns a group's output channels, for the data gradient; `flip`
  // turns the taps around, for the data gradient as a convolution.
  int32_t swap;
  int32_t flip;
  void* out[3];       // float32, bfloat16, float16; null where not wanted
  int64_t header[8];  // written before a packed weight's first row
  void* head;         // where to, or null; 16 zero bytes go to `tail`
  void* tail;
};

// reduce_splits: out = the sum over splits of partial[split][row][tap][c], at out's own strides.
struct ReduceSplitsParams {
  const float* partial;
  void* out;
  int64_t stride_k, stride_c, stride_r, stride_s;
  int64_t elements;
  int32_t splits;
  int32_t group_in_channels, kernel_h, kernel_w;
};

// merge_statistics: Chan's merge of the tiles' (count, mean, M2), in the order of the tiles.
struct MergeStatisticsParams {
  const float* partial;   // [tiles][channels][2]
  const int32_t* counts;  // [tiles]
  float* mean;
  float* m2;
  int32_t tiles;
  int32_t channels;
};

// sum_partials: out[i][channel] = factor[i][channel] * the sum over tiles of term[i], in their
// order.
struct SumPartialsParams {
  static constexpr int kOutputs = 6;
  const float* partial;  // [tiles][channels][terms]
  int32_t terms;
  int32_t tiles;
  int32_t channels;
  int32_t term[kOutputs];
  float* out[kOutputs];           // null where not wanted
  const float* factor[kOutputs];  // negated; null for 1
};

// affine_add_act and its backward. A block has `columns` chunks of channels of every `rows`-th
// pixel of its range.
struct AffineAddActParams {
  const void* grad;  // backward only
  const void* y;
  const float *mean, *scale, *bias;
  const void* residual;                          // or null
  const float *res_mean, *res_scale, *res_bias;  // or null
  Activation act;
  float act_slope;
  int32_t unscaled;     // backward: grad_y is g
  void* out;            // forward: the result; backward: grad_y
  void* grad_residual;  // backward, or null
  float*
      partial;  // backward: [blocks][channels][3], sums of g, g * (y - mean), g * (res - res_mean)
  int64_t pixels;
  int64_t pixels_per_block;
  int32_t channels;
  int32_t columns, rows;
  int32_t column_blocks;
};

constexpr int kElementwiseThreads = 256;
// merge_statistics and sum_partials: a warp of channels, so many threads a channel.
constexpr int kReduceChannels = 32;
constexpr int kReduceParts = 32;

}  // namespace fastres::cuda

// The innermost loops of training: per-channel affines, statistics and weight gradients.
//
// A table of its own beside microkernels.h, built the same way: once per instruction set, raw
// pointers and strides in floats, no torch.

#pragma once

#include <cstddef>
#include <cstdint>

#include "microkernels.h"

namespace fastres::cpu {

// Pixels whose channels are adjacent, `stride` floats from one to the next.
struct Pixels {
  float* data = nullptr;
  ptrdiff_t stride = 0;
};
struct ConstPixels {
  const float* data = nullptr;
  ptrdiff_t stride = 0;
};

// (x - mean) * scale + bias, one value of each per channel.
struct Affine {
  const float* mean = nullptr;
  const float* scale = nullptr;
  const float* bias = nullptr;

  Affine from(int64_t channel) const { return {mean + channel, scale + channel, bias + channel}; }
};

// act(main(x) + residual(r)); the residual is left out where its pixels are null.
struct AffineAct {
  Affine main;
  Affine residual;
  Activation act = Activation::none;
  float act_slope = 0.0F;
};

// What the backward of act(main(x) + residual(r)) reads; what is left out has no data.
struct AffineActInputs {
  ConstPixels grad;     // of what the forward computed
  ConstPixels grad_in;  // the same, added to it
  ConstPixels x;
  ConstPixels residual;
  ConstPixels result;  // what a ReLU computed, instead of the residual; its sum is not taken then
};

// What the backward of act(main(x) + residual(r)) writes; those without data are left out. Any of
// them may be the gradient that it reads.
struct AffineActTargets {
  Pixels grad_x;          // g * main.scale, g the gradient of the activation's input
  Pixels grad_residual;   // g * residual.scale
  Pixels activated;       // what the forward computed; without a residual and a result only
  bool unscaled = false;  // grad_x is g
};

// Sums over pixels, one value per channel, added to: what the gradients of an affine are made of.
struct AffineSums {
  float* grad = nullptr;           // g
  float* grad_main = nullptr;      // g * (x - mean)
  float* grad_residual = nullptr;  // g * (r - residual mean); unused without a residual
};

// grad * scale + offset + slope * (y - mean): what the gradients of a convolution's output and of
// its statistics are together.
struct StatsGradient {
  const float* scale = nullptr;
  const float* offset = nullptr;
  const float* slope = nullptr;
  const float* mean = nullptr;
};

// The gradient of `blocks` blocks of 16 output channels, 1 or 2, by `channels` adjacent input
// values of one tap, or by all input values of a row of adjacent taps. Lanes beyond the last output
// channel are read and summed, to be ignored.
struct WgradTile {
  const float* grad;
  ptrdiff_t grad_image_stride;
  ptrdiff_t grad_row_stride;
  ptrdiff_t grad_pixel_stride;
  const float* input;
  ptrdiff_t input_image_stride;
  ptrdiff_t input_row_stride;    // between output rows (vertical stride included)
  ptrdiff_t input_pixel_stride;  // between output pixels (horizontal stride included)
  int64_t images, rows, pixels;
  int64_t channels;
  int64_t blocks;
  float* sums;                  // [channels][16] a block, added to
  ptrdiff_t sums_block_stride;  // between blocks
  ptrdiff_t sums_tap_stride;    // between taps

  // Not for `wgrad`, which takes one tap. For lanes of one block: input holds 16 channels, of the
  // same groups as the output's.
  int64_t tap_rows, tap_cols;
  ptrdiff_t tap_row_stride, tap_col_stride;
};

// `rows` x `pixels` gradients of a convolution's output.
struct GradientPixels {
  const float* data;
  ptrdiff_t row_stride, pixel_stride;
  int64_t rows, pixels;
};

// One row of a max-pooling's output, and where in its window each value was: the number of the row
// times kernel_w, and that of the column. The first value is taken where nothing is larger.
struct PlacedPoolRow {
  PoolRow row;
  int64_t first_row;  // of the window, inside the image
  uint8_t* places;    // dense, like the output
};

// Of a window: a place is a byte.
constexpr int64_t kMostPlaces = 256;

// One row of the gradient of a max-pooling's input; the kernel has kMostPlaces at most.
struct PoolGradientRow {
  const float* const* grads;     // for each row of the kernel, that of the outputs that read the
                                 // gradient's row by it; null for none
  const uint8_t* const* places;  // likewise
  int64_t kernel_h, kernel_w, stride_w, padding_w;
  int64_t out_pixels;
  int64_t channels;
  float* target;  // dense
  int64_t pixels;
};

struct TrainingKernels {
  // target = act(main(x) + residual(r)). target may be x.
  void (*affine_act)(const AffineAct& f, ConstPixels x, ConstPixels residual, Pixels target,
                     int64_t pixels, int64_t channels);
  void (*affine_act_backward)(const AffineAct& f, const AffineActInputs& inputs,
                              const AffineActTargets& targets, const AffineSums& sums,
                              int64_t pixels, int64_t channels);
  // target may be grad.
  void (*stats_gradient)(const StatsGradient& f, ConstPixels grad, ConstPixels y, Pixels target,
                         int64_t pixels, int64_t channels);
  // Per channel the sums of y - pivot and of its square.
  void (*moments)(ConstPixels y, int64_t pixels, int64_t channels, const float* pivot,
                  float* deviation, float* square);
  void (*wgrad)(const WgradTile&);
  // Narrow groups: sums are [tap_rows][tap_cols][group_width][16]; group_width in {1, 2, 4, 8}.
  void (*wgrad_lanes)(const WgradTile&, int64_t group_width);
  // Each tile's 2x2 gradients to sixteen, zero where there are none.
  void (*winograd_gradient)(const WinogradTiles&, const GradientPixels&);
  // Sums of products, [16][channels][16], to those of the nine taps, [9][channels][16].
  void (*winograd_taps)(const float* sums, ptrdiff_t position_stride, int64_t channels,
                        float* taps);
  void (*max_pool_places)(const PlacedPoolRow&);
  void (*max_pool_gradient)(const PoolGradientRow&);
};

const TrainingKernels& training_kernels_for(Isa isa);

}  // namespace fastres::cpu

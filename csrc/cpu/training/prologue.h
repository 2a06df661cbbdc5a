// The convolution of training: act((x - mean) * scale + bias) where x is loaded.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../convolution/conv_layer.h"
#include "../convolution/tensor_image.h"
#include "../convolution/weights.h"
#include "training_rows.h"

namespace fastres::cpu {

// The arguments of conv_stats and conv_stats_backward that both have, as they came.
struct ConvStatsArguments {
  const Tensor& x;
  const std::optional<Tensor>& in_mean;
  const std::optional<Tensor>& in_scale;
  const std::optional<Tensor>& in_bias;
  const std::string& in_act;
  double in_act_slope;
  const Tensor& weight;
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& padding;
  const std::vector<int64_t>& dilation;
  int64_t groups;
  const std::string& algorithm;
  bool every_pixel = false;  // keeps the pixels that a strided 1x1 does not read
};

// What the kernels make of them. A 1x1 without padding reads every step-th pixel alone: x is the
// image of those, and the convolution has stride 1.
struct TrainingConv {
  ConvGeometry geometry;
  Image x;
  Extent step;
  AffineAct prologue;         // its pointers are into the members below
  bool has_prologue = false;  // otherwise x is convolved as it is
  bool has_affine = false;
  bool winograd = false;
  WeightView weight;

  AffineConstants identity;
  std::vector<Tensor> kept;  // converted or made contiguous

  TrainingConv(const ConvStatsArguments& arguments, const char* op);

  // Convolves this image as it is, in the place of the activated x.
  void take_plain(const Image& image) {
    x = image;
    prologue.main = identity.identity();
    prologue.act = Activation::none;
    has_prologue = false;
  }
};

// Whether a weight's gradient can be taken of the input where it lies; its kernels may read whole
// blocks of channels.
inline bool reads_input_directly(const TrainingConv& conv) {
  return !conv.has_prologue && conv.x.is_float32_nhwc() && !conv.geometry.padding.any() &&
         conv.x.channels % kChannelBlock == 0;
}

// A per-channel float32 vector, made contiguous and kept alive in `kept`.
const float* channel_vector(const Tensor& values, int64_t channels, const char* op,
                            const char* name, std::vector<Tensor>& kept);

// Rows [what.row, ...) of those channels of the activated input, padded with zeros, as a band at
// `target`, its pixels band_pixel_stride(channels.size()) apart. Uses the thread's inner1 scratch.
Band load_activated(const Kernels& kernels, const TrainingConv& conv, const PaddedRows& what,
                    Range channels, float* target);

}  // namespace fastres::cpu

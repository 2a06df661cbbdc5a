// The convolution of training: act((x - mean) * scale + bias) where x is loaded.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "conv_rows.h"
#include "tensor_image.h"
#include "training_rows.h"
#include "weights.h"

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
};

// What the kernels make of them.
struct TrainingConv {
  ConvGeometry geometry;
  Image x;
  AffineAct prologue;         // its pointers are into the members below
  bool has_prologue = false;  // otherwise x is convolved as it is
  bool has_affine = false;
  WeightView weight;

  AffineConstants identity;
  std::vector<Tensor> kept;  // converted or made contiguous

  TrainingConv(const ConvStatsArguments& arguments, const char* op);
};

// A per-channel float32 vector, made contiguous and kept alive in `kept`.
const float* channel_vector(const Tensor& values, int64_t channels, const char* op,
                            const char* name, std::vector<Tensor>& kept);

// A 1x1 convolution with stride 1 has no image borders: the rows of all images become those of one.
// `images` are those of the convolution's input and output.
void join_images(ConvGeometry& geometry, std::vector<Image*> images);

// Rows [what.row, ...) of the activated input, padded with zeros, as a dense band at `target`.
Band load_activated(const Kernels& kernels, const TrainingConv& conv, const PaddedRows& what,
                    float* target);

}  // namespace fastres::cpu

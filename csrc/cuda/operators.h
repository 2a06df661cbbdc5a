// The operators as sequences of launches, on pointers: what csrc/cuda/<op>.cpp calls with tensors
// and the tests record.

#pragma once

#include <algorithm>
#include <string>

#include "../packed_weight.h"
#include "bottleneck_launch.h"
#include "wgrad_launch.h"

namespace fastres::cuda {

// ---- weights

inline PackWeightParams pack_params(const WeightTensor& weight, const float* scale,
                                    const ConvGeometry& g) {
  PackWeightParams p{};
  p.weight = weight.data;
  p.scale = scale;
  p.stride_k = weight.stride_k, p.stride_c = weight.stride_c;
  p.stride_r = weight.stride_r, p.stride_s = weight.stride_s;
  p.out_channels = narrow(g.out_channels);
  p.group_in_channels = narrow(g.in_channels / g.groups);
  p.kernel_h = narrow(g.kernel.h), p.kernel_w = narrow(g.kernel.w);
  p.groups = narrow(g.groups);
  p.pitch = weight_pitch(g.kernel.h * g.kernel.w, p.group_in_channels);
  return p;
}

inline void run_pack(Executor& executor, Dtype type, const PackWeightParams& p) {
  const int64_t rows = p.swap != 0 ? int64_t{p.group_in_channels} * p.groups : p.out_channels;
  executor.run(std::string("fastres_pack_weight") + suffix(type),
               ceil_div(rows * p.pitch, kElementwiseThreads), kElementwiseThreads, 0, p);
}

inline PackedHeader krsc_header(const ConvGeometry& g) {
  PackedHeader header;
  header.layout = PackedLayout::krsc;
  header.out_channels = narrow(g.out_channels);
  header.group_in_channels = narrow(g.in_channels / g.groups);
  header.kernel_h = narrow(g.kernel.h);
  header.kernel_w = narrow(g.kernel.w);
  header.groups = narrow(g.groups);
  return header;
}

// pack_conv_weight: a packed weight of layout krsc, header included.
inline void pack_conv_weight(Executor& executor, const WeightTensor& weight, const float* scale,
                             const ConvGeometry& g, const PackedHeader& header, void* packed) {
  PackWeightParams p = pack_params(weight, scale, g);
  auto* bytes = static_cast<char*>(packed);
  p.head = bytes;
  p.tail = bytes + header.payload_bytes() + sizeof(header) - PackedHeader::kKrscTail;
  static_assert(sizeof(p.header) == sizeof(header));
  std::memcpy(p.header, &header, sizeof(header));
  for (const Dtype type : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    p.out[static_cast<int>(type)] = bytes + header.krsc_offset(static_cast<int>(type));
  }
  run_pack(executor, weight.type, p);
}

// A weight times its scale, as the convolution (or its transpose) of `type` reads it.
inline const void* pack_rows(Executor& executor, Dtype type, const WeightTensor& weight,
                             const float* scale, const ConvGeometry& g, bool swap, bool flip) {
  PackWeightParams p = pack_params(weight, scale, g);
  p.swap = swap ? 1 : 0;
  p.flip = flip ? 1 : 0;
  const int64_t taps = g.kernel.h * g.kernel.w;
  if (swap) p.pitch = weight_pitch(taps, g.out_channels / g.groups);
  void* packed =
      executor.scratch((swap ? g.in_channels : g.out_channels) * p.pitch * element_bytes(type));
  p.out[static_cast<int>(type)] = packed;
  run_pack(executor, weight.type, p);
  return packed;
}

// ---- inference

struct ConvBnActArguments {
  const void* x;
  const void* packed;   // of layout krsc, or null:
  WeightTensor weight;  // packed on the way, times
  const float* scale;   // or null
  const float* shift;
  const void* residual;
  void* out;
  Activation act;
  float act_slope;
};

// The weight as kernels of `type` read it.
inline const void* weight_rows(Executor& executor, Dtype type, const ConvGeometry& g,
                               const ConvBnActArguments& a) {
  if (a.packed == nullptr) return pack_rows(executor, type, a.weight, a.scale, g, false, false);
  const int64_t offset = krsc_header(g).krsc_offset(static_cast<int>(type));
  return static_cast<const char*>(a.packed) + offset;
}

inline Epilogue inference_epilogue(const ConvGeometry& g, const ConvBnActArguments& a) {
  Epilogue e{};
  e.kind = EpilogueKind::inference;
  e.act = a.act;
  e.act_slope = a.act_slope;
  e.channels = narrow(g.out_channels);
  e.out = a.out;
  e.residual = a.residual;
  e.shift = a.shift;
  return e;
}

inline void conv_bn_act(Executor& executor, Dtype type, const ConvGeometry& g,
                        const ConvBnActArguments& a) {
  const void* weight = weight_rows(executor, type, g, a);
  AnyConv(type, g, false, false).run(executor, plain_source(a.x), weight, inference_epilogue(g, a));
}

struct Layer {
  ConvGeometry geometry;
  ConvBnActArguments arguments;
};

inline void run_one_kernel(Executor& executor, Dtype type, OneKernelBottleneck kernel,
                           const void* x, const Layer& reduce, const Layer& spatial, Layer expand,
                           const Layer* down) {
  const auto weight = [&](BottleneckWeight& to, const Layer& layer) {
    to.data = weight_rows(executor, type, layer.geometry, layer.arguments);
    to.shift = layer.arguments.shift;
  };
  BottleneckParams& p = kernel.params;
  p.x = x;
  weight(p.reduce, reduce);
  weight(p.spatial, spatial);
  weight(p.expand, expand);
  if (down != nullptr) {
    weight(p.down, *down);
  } else {
    expand.arguments.residual = x;
  }
  p.act = reduce.arguments.act;
  p.slope = reduce.arguments.act_slope;
  p.epilogue = inference_epilogue(expand.geometry, expand.arguments);
  kernel.run(executor);
}

enum class OneKernel : int { never, always, where_it_pays };

// A whole bottleneck, in one launch or a launch a convolution; `down` may be null. The layers lack
// x, residual and all outputs but the last one's.
inline void grouped_bottleneck(Executor& executor, Dtype type, const void* x, Layer reduce,
                               Layer spatial, Layer expand, const Layer* down,
                               OneKernel choice = OneKernel::where_it_pays) {
  const OneKernelBottleneck kernel(type, {reduce.geometry, spatial.geometry, expand.geometry,
                                          down != nullptr ? &down->geometry : nullptr});
  if (kernel.possible() &&
      (choice == OneKernel::always || (choice == OneKernel::where_it_pays && kernel.pays()))) {
    return run_one_kernel(executor, type, kernel, x, reduce, spatial, expand, down);
  }
  const auto run = [&](Layer& layer, const void* from, const void* residual) {
    const ConvGeometry& g = layer.geometry;
    layer.arguments.x = from;
    layer.arguments.residual = residual;
    if (layer.arguments.out == nullptr) {
      layer.arguments.out =
          executor.scratch(g.batch * g.out_channels * g.out.h * g.out.w * element_bytes(type));
    }
    conv_bn_act(executor, type, g, layer.arguments);
    return static_cast<const void*>(layer.arguments.out);
  };
  const void* shortcut = x;
  if (down != nullptr) {
    Layer projection = *down;
    shortcut = run(projection, x, nullptr);
  }
  const void* inner = run(reduce, x, nullptr);
  inner = run(spatial, inner, nullptr);
  run(expand, inner, shortcut);
}

// ---- training

struct ConvStatsArguments {
  Source x;  // with the prologue
  WeightTensor weight;
  void* y;
  float* mean;
  float* m2;
};

inline int64_t reduce_blocks(int64_t channels) { return ceil_div(channels, kReduceChannels); }
constexpr int kReduceThreads = kReduceChannels * kReduceParts;
constexpr int kReduceBytes = kReduceThreads * 8;

inline void conv_stats(Executor& executor, Dtype type, const ConvGeometry& g,
                       const ConvStatsArguments& a) {
  AnyConv conv(type, g, false, true);
  const int64_t tiles = conv.partial_tiles();
  Epilogue e{};
  e.kind = EpilogueKind::statistics;
  e.channels = narrow(g.out_channels);
  e.out = a.y;
  e.partial = static_cast<float*>(executor.scratch(tiles * g.out_channels * 8));
  e.counts = static_cast<int32_t*>(executor.scratch(tiles * 4));
  conv.run(executor, a.x, pack_rows(executor, type, a.weight, nullptr, g, false, false), e);
  const MergeStatisticsParams p{e.partial, e.counts, a.mean, a.m2, narrow(tiles), e.channels};
  executor.run("fastres_merge_statistics", reduce_blocks(g.out_channels), kReduceThreads,
               kReduceBytes, p);
}

struct ConvStatsBackwardArguments {
  Source gradient;  // of the convolution's output, its statistics' gradients included
  Source x;         // with the prologue
  WeightTensor weight;
  const void* grad_in;  // of the activated input too, or null
  // Where affine_add_act has activated the input: what it added, and its result; or null.
  const void* in_residual;
  const void* activated;
  void* grad_x;  // null where not wanted, as all below
  float* grad_in_mean;
  float* grad_in_scale;
  float* grad_in_bias;
  WeightTensor grad_weight;
};

inline void conv_stats_backward(Executor& executor, Dtype type, const ConvGeometry& g,
                                const ConvStatsBackwardArguments& a) {
  const bool affine = a.grad_in_bias != nullptr;
  if (a.grad_x != nullptr || affine) {
    AnyConv conv(type, g, true, true);
    const int64_t tiles = conv.partial_tiles();
    Epilogue e{};
    e.kind = EpilogueKind::input_gradient;
    e.act = a.x.act;
    e.act_slope = a.x.act_slope;
    e.channels = narrow(g.in_channels);
    e.out = a.grad_x;
    e.residual = a.grad_in;
    e.shortcut = a.in_residual;
    if (!a.x.plain()) e.x = a.x.x;
    e.mean = a.x.mean, e.scale = a.x.scale, e.bias = a.x.bias;
    if (affine) e.partial = static_cast<float*>(executor.scratch(tiles * g.in_channels * 8));
    conv.run(executor, a.gradient,
             pack_rows(executor, type, a.weight, nullptr, g, true, conv.flips()), e);
    if (affine) {
      const SumPartialsParams p{
          e.partial,
          2,
          narrow(tiles),
          e.channels,
          {0, 1, 0, 0, 0, 0},
          {a.grad_in_mean, a.grad_in_scale, a.grad_in_bias, nullptr, nullptr, nullptr},
          {a.x.scale, nullptr, nullptr, nullptr, nullptr, nullptr}};
      executor.run("fastres_sum_partials", reduce_blocks(g.in_channels), kReduceThreads,
                   kReduceBytes, p);
    }
  }
  if (a.grad_weight.data != nullptr) {
    const Source input = a.activated != nullptr ? plain_source(a.activated) : a.x;
    Wgrad(type, g).run(executor, a.gradient, input, a.grad_weight);
  }
}

// ---- the end of a block

// How the tensors are cut, and what the backward's partial sums are per block of.
struct AffineTiles {
  int64_t column_blocks, pixel_blocks;

  AffineTiles(Dtype type, AffineAddActParams& p) {
    const int64_t chunks = ceil_div(p.channels, chunk_elements(type));
    p.columns = static_cast<int32_t>(std::min<int64_t>(chunks, kElementwiseThreads / 4));
    p.rows = kElementwiseThreads / p.columns;
    column_blocks = ceil_div(chunks, p.columns);
    p.column_blocks = narrow(column_blocks);
    // As many blocks as an H100 holds at a time, each of at least eight rounds.
    constexpr int64_t kBlocks = 132 * 2048 / kElementwiseThreads;
    const int64_t rounds =
        std::max<int64_t>(8, ceil_div(p.pixels * column_blocks, kBlocks * p.rows));
    p.pixels_per_block = rounds * p.rows;
    pixel_blocks = ceil_div(p.pixels, p.pixels_per_block);
  }
};

inline void affine_add_act(Executor& executor, Dtype type, AffineAddActParams p) {
  const AffineTiles tiles(type, p);
  executor.run(std::string("fastres_affine_add_act") + suffix(type),
               tiles.column_blocks * tiles.pixel_blocks, kElementwiseThreads, 0, p);
}

struct AffineAddActGradients {
  float *mean, *scale, *bias, *res_mean, *res_scale, *res_bias;
};

inline void affine_add_act_backward(Executor& executor, Dtype type, AffineAddActParams p,
                                    const AffineAddActGradients& out) {
  const AffineTiles tiles(type, p);
  p.partial = static_cast<float*>(executor.scratch(tiles.pixel_blocks * p.channels * 3 * 4));
  const int shared = static_cast<int>(p.rows * p.columns * chunk_elements(type) * 4);
  executor.run(std::string("fastres_affine_add_act_backward") + suffix(type),
               tiles.column_blocks * tiles.pixel_blocks, kElementwiseThreads, shared, p);
  const SumPartialsParams sums{
      p.partial,
      3,
      narrow(tiles.pixel_blocks),
      p.channels,
      {0, 1, 0, 0, 2, 0},
      {out.mean, out.scale, out.bias, out.res_mean, out.res_scale, out.res_bias},
      {p.scale, nullptr, nullptr, p.res_scale, nullptr, nullptr}};
  executor.run("fastres_sum_partials", reduce_blocks(p.channels), kReduceThreads, kReduceBytes,
               sums);
}

}  // namespace fastres::cuda

// Launches weight gradients: a first stage that splits the pixels, and the sum over the splits.

#pragma once

#include <algorithm>

#include "conv_launch.h"

namespace fastres::cuda {

// A weight as a tensor: any strides.
struct WeightTensor {
  const void* data;
  Dtype type;
  int64_t stride_k, stride_c, stride_r, stride_s;
};

class Wgrad {
 public:
  Wgrad(Dtype type, const ConvGeometry& g) : type_(type), geometry_(g) {}

  void run(Executor& executor, const Source& gradient, const Source& source,
           const WeightTensor& out) {
    const ConvGeometry& g = geometry_;
    elements_ = g.out_channels * (g.in_channels / g.groups) * g.kernel.h * g.kernel.w;
    if (GroupedConvolution::fits(type_, g) && grouped_bytes() <= GroupedConvolution::kMaxShared) {
      run_grouped(executor, gradient, source);
    } else {
      run_dense(executor, gradient, source);
    }
    ReduceSplitsParams p{};
    p.partial = partial_;
    p.out = const_cast<void*>(out.data);
    p.stride_k = out.stride_k, p.stride_c = out.stride_c;
    p.stride_r = out.stride_r, p.stride_s = out.stride_s;
    p.elements = elements_;
    p.splits = narrow(splits_);
    p.group_in_channels = narrow(g.in_channels / g.groups);
    p.kernel_h = narrow(g.kernel.h), p.kernel_w = narrow(g.kernel.w);
    executor.run(std::string("fastres_reduce_splits") + suffix(out.type),
                 ceil_div(elements_, kElementwiseThreads), kElementwiseThreads, 0, p);
  }

 private:
  // As many blocks as an A100 runs at a time, whose 108 multiprocessors have registers for one of
  // conv_wgrad and two of grouped_wgrad: more would leave more partial sums to write and read.
  static constexpr int64_t kDenseBlocks = 108, kGroupedBlocks = 216;

  // Splits `items` so that there are about `all` blocks, `blocks` a split, each of at least `least`
  // items.
  int64_t split(Executor& executor, int64_t items, int64_t all, int64_t blocks, int64_t least) {
    splits_ = 0;
    if (items == 0) return 0;  // an empty batch: reduce_splits writes zeros
    const int64_t wanted = std::clamp<int64_t>(all / blocks, 1, ceil_div(items, least));
    const int64_t each = ceil_div(items, wanted);
    splits_ = ceil_div(items, each);
    partial_ = static_cast<float*>(executor.scratch(splits_ * elements_ * 4));
    return each;
  }

  template <class Params>
  void fill(Params& p, const Source& gradient, const Source& source) const {
    const ConvGeometry& g = geometry_;
    p.gradient = gradient;
    p.source = source;
    p.window = window_of(g);
    p.batch = narrow(g.batch);
    p.in_h = narrow(g.in.h), p.in_w = narrow(g.in.w);
    p.out_h = narrow(g.out.h), p.out_w = narrow(g.out.w);
  }

  void run_dense(Executor& executor, const Source& gradient, const Source& source) {
    const ConvGeometry& g = geometry_;
    WgradParams p{};
    fill(p, gradient, source);
    p.groups = narrow(g.groups);
    p.in_channels = narrow(g.in_channels / g.groups);
    p.out_channels = narrow(g.out_channels / g.groups);
    const int64_t chunk = chunk_elements(type_);
    p.gather = p.in_channels % chunk != 0 || p.out_channels % chunk != 0 ? 1 : 0;
    p.m_tiles = narrow(ceil_div(p.out_channels, kWgradTile));
    p.n_tiles = narrow(ceil_div(g.kernel.h * g.kernel.w * p.in_channels, kWgradTile));
    const int64_t blocks = int64_t{p.m_tiles} * p.n_tiles * p.groups;
    const int64_t step = kWgradParts * wgrad_pixels(static_cast<int>(element_bytes(type_)));
    const int64_t steps = ceil_div(g.batch * g.out.h * g.out.w, step);
    p.pixels_per_split = step * split(executor, steps, kDenseBlocks, blocks, 4);
    p.partial = partial_;
    executor.run(std::string("fastres_conv_wgrad") + suffix(type_), blocks * splits_, kWgradThreads,
                 kWgradBytes, p);
  }

  int32_t tile_height() const { return GroupedConvolution::tile_height(geometry_.out.h); }
  int64_t patch_pixels(GroupedWgradParams& p) const {
    p.patch_h = (p.tile_h - 1) * p.window.stride_h + 2 * p.window.dilation_h + 1;
    p.patch_w = (kGroupedTileWidth - 1) * p.window.stride_w + 2 * p.window.dilation_w + 1;
    return p.patch_h * ceil_div(p.patch_w, p.window.stride_w) * p.window.stride_w;
  }
  int64_t grouped_bytes() const {
    GroupedWgradParams p{};
    p.window = window_of(geometry_);
    p.tile_h = tile_height();
    return (patch_pixels(p) + p.tile_h * kGroupedTileWidth) * kGroupedBytes;
  }

  void run_grouped(Executor& executor, const Source& gradient, const Source& source) {
    const ConvGeometry& g = geometry_;
    GroupedWgradParams p{};
    fill(p, gradient, source);
    const int64_t width = g.in_channels / g.groups;
    const int bytes = static_cast<int>(element_bytes(type_));
    p.channels = narrow(g.in_channels);
    p.tile_h = tile_height();
    p.tiles_h = narrow(ceil_div(g.out.h, p.tile_h));
    p.tiles_w = narrow(ceil_div(g.out.w, kGroupedTileWidth));
    patch_pixels(p);
    const int64_t blocks = ceil_div(p.channels, grouped_channels(bytes));
    p.tiles_per_split = split(executor, g.batch * p.tiles_h * p.tiles_w, kGroupedBlocks, blocks, 1);
    p.partial = partial_;
    executor.run("fastres_grouped_wgrad_" + std::to_string(width) + suffix(type_), blocks * splits_,
                 grouped_wgrad_threads(static_cast<int>(width), bytes),
                 static_cast<int>(grouped_bytes()), p);
  }

  Dtype type_;
  ConvGeometry geometry_;
  int64_t elements_ = 0, splits_ = 0;
  float* partial_ = nullptr;
};

}  // namespace fastres::cuda

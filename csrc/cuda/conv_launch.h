// Launches convolutions: which kernel, with which tile.

#pragma once

#include <algorithm>
#include <optional>
#include <string>

#include "../geometry.h"
#include "launch.h"
#include "params.h"

namespace fastres::cuda {

// Rows of weights are (tap, input channel of the group), padded to whole chunks of any type.
inline int32_t weight_pitch(int64_t taps, int64_t columns) {
  return narrow(ceil_div(taps * columns, 8) * 8);
}

inline Window window_of(const ConvGeometry& g) {
  return {narrow(g.kernel.h),    narrow(g.kernel.w),    narrow(g.stride.h),
          narrow(g.stride.w),    narrow(g.dilation.h),  narrow(g.dilation.w),
          narrow(g.padding.top), narrow(g.padding.left)};
}

inline Source plain_source(const void* x) {
  Source source{};
  source.x = x;
  source.scale_factor = source.bias_factor = 1.0F;
  return source;
}

// How the output is cut: what the epilogue's partial results are per tile of.
struct ConvTiles {
  std::string kernel;
  int bm = 0, bn = 0, threads = 0;
  int64_t m_tiles = 0, n_tiles = 0, classes = 1;
  int64_t partial_tiles() const { return m_tiles * classes; }
};

// conv_gemm's launch, forward or (transposed) the data gradient. Training convolutions have sources
// and epilogues that the asynchronous instances lack.
struct GemmConv {
  ConvGemmParams params{};
  ConvTiles tiles;

  GemmConv(Dtype type, const ConvGeometry& g, bool transposed, bool training) {
    ConvGemmParams& p = params;
    p.window = window_of(g);
    p.batch = narrow(g.batch);
    p.groups = narrow(g.groups);
    const Extent from = transposed ? g.out : g.in, to = transposed ? g.in : g.out;
    p.in_h = narrow(from.h), p.in_w = narrow(from.w);
    p.out_h = narrow(to.h), p.out_w = narrow(to.w);
    p.in_channels = narrow((transposed ? g.out_channels : g.in_channels) / g.groups);
    p.out_channels = narrow((transposed ? g.in_channels : g.out_channels) / g.groups);
    p.pitch = weight_pitch(g.kernel.h * g.kernel.w, p.in_channels);
    p.transposed = transposed ? 1 : 0;
    p.gather = p.in_channels % chunk_elements(type) == 0 ? 0 : 1;
    const bool by_class = transposed && p.gather == 0;
    p.classes_h = by_class ? p.window.stride_h : 1;
    p.classes_w = by_class ? p.window.stride_w : 1;
    choose_tiles(type, !training && p.gather == 0);
  }

 private:
  void choose_tiles(Dtype type, bool async) {
    const int64_t pixels = int64_t{params.batch} * ceil_div(params.out_h, params.classes_h) *
                           ceil_div(params.out_w, params.classes_w);
    tiles.classes = int64_t{params.classes_h} * params.classes_w;
    const auto cut = [&](int bm, int bn, int threads) {
      tiles.bm = bm, tiles.bn = bn, tiles.threads = threads;
      tiles.m_tiles = ceil_div(pixels, bm);
      tiles.n_tiles = ceil_div(params.out_channels, bn);
      return tiles.m_tiles * tiles.n_tiles * params.groups * tiles.classes;
    };
    // Fewer blocks than an A100 has multiprocessors: smaller tiles keep more of them busy.
    constexpr int64_t kMultiprocessors = 108;
    // float32 would spill in the widest tile, and in the next one with as few threads: its halves
    // and their products take registers of their own.
    const bool is_float = type == Dtype::f32;
    const bool wide = async && !is_float && params.out_channels > 64;
    if (!wide || cut(128, 128, 256) < kMultiprocessors) {
      if (cut(128, 64, is_float ? 256 : 128) < kMultiprocessors) cut(64, 64, 128);
    }
    tiles.kernel = std::string("fastres_conv_gemm_") + (async ? "async_" : "source_") +
                   std::to_string(tiles.bm) + "x" + std::to_string(tiles.bn) + suffix(type);
    params.m_tiles = narrow(tiles.m_tiles);
    params.n_tiles = narrow(tiles.n_tiles);
  }

 public:
  void run(Executor& executor, const Source& source, const void* weight, const Epilogue& epilogue) {
    params.source = source;
    params.weight = weight;
    params.epilogue = epilogue;
    executor.run(tiles.kernel, tiles.partial_tiles() * tiles.n_tiles * params.groups, tiles.threads,
                 conv_gemm_bytes(tiles.bm, tiles.bn, tiles.threads), params);
  }
};

// grouped_conv's launch, forward or the data gradient, which is a convolution with stride 1 of the
// output's gradient with zeros between its pixels and the taps turned around.
struct GroupedConvolution {
  GroupedConvParams params{};
  int64_t width = 0, blocks = 0;
  int threads = 0, shared = 0;
  std::string kernel;

  static bool fits(Dtype type, const ConvGeometry& g) {
    const int64_t width = g.in_channels / g.groups;
    if (width != g.out_channels / g.groups || g.groups == 1) return false;
    if (width != 4 && width != 8 && width != 16 && width != 32) return false;
    if (g.kernel.h != 3 || g.kernel.w != 3 || g.in_channels % chunk_elements(type) != 0)
      return false;
    // Far taps make patches that do not fit: those run on conv_gemm.
    return GroupedConvolution(type, g, false).shared <= kMaxShared &&
           GroupedConvolution(type, g, true).shared <= kMaxShared;
  }

  GroupedConvolution(Dtype type, const ConvGeometry& g, bool transposed)
      : width(g.in_channels / g.groups) {
    GroupedConvParams& p = params;
    p.window = window_of(g);
    p.upsample_h = p.upsample_w = 1;
    if (transposed) {
      p.upsample_h = p.window.stride_h, p.upsample_w = p.window.stride_w;
      p.window.stride_h = p.window.stride_w = 1;
      p.window.pad_top = 2 * p.window.dilation_h - p.window.pad_top;
      p.window.pad_left = 2 * p.window.dilation_w - p.window.pad_left;
    }
    p.batch = narrow(g.batch);
    p.channels = narrow(g.in_channels);
    p.pitch = weight_pitch(9, width);
    const Extent from = transposed ? g.out : g.in, to = transposed ? g.in : g.out;
    p.in_h = narrow(from.h), p.in_w = narrow(from.w);
    p.out_h = narrow(to.h), p.out_w = narrow(to.w);
    p.tile_h = tile_height(p.out_h);
    p.tiles_h = narrow(ceil_div(p.out_h, p.tile_h));
    p.tiles_w = narrow(ceil_div(p.out_w, kGroupedTileWidth));
    p.patch_h = (p.tile_h - 1) * p.window.stride_h + 2 * p.window.dilation_h + 1;
    p.patch_w = (kGroupedTileWidth - 1) * p.window.stride_w + 2 * p.window.dilation_w + 1;
    const int bytes = static_cast<int>(element_bytes(type));
    const int64_t pitch = ceil_div(p.patch_w, p.window.stride_w) * p.window.stride_w;
    shared = grouped_conv_bytes(narrow(std::min<int64_t>(p.patch_h * pitch, 1 << 16)),
                                narrow(width), bytes);
    threads = grouped_threads(narrow(width), bytes);
    blocks = partial_tiles() * ceil_div(p.channels, grouped_channels(bytes));
    kernel = "fastres_grouped_conv_" + std::to_string(width) + suffix(type);
  }

  int64_t partial_tiles() const { return int64_t{params.batch} * params.tiles_h * params.tiles_w; }

  void run(Executor& executor, const Source& source, const void* weight, const Epilogue& epilogue) {
    params.source = source;
    params.weight = weight;
    params.epilogue = epilogue;
    executor.run(kernel, blocks, threads, shared, params);
  }

  // The even height that wastes the fewest rows, of those the tallest.
  static int32_t tile_height(int64_t rows) {
    int64_t best = 2, least = INT64_MAX;
    for (int64_t height = 2; height <= kGroupedTileHeight; height += 2) {
      // A row of halo on both sides costs about as much as two rows.
      const int64_t cost = ceil_div(rows, height) * (height + 2);
      if (cost <= least) best = height, least = cost;
    }
    return static_cast<int32_t>(best);
  }

  static constexpr int kMaxShared = 96 * 1024;
};

// Any convolution, forward or transposed: on grouped_conv where that fits, on conv_gemm otherwise.
class AnyConv {
 public:
  AnyConv(Dtype type, const ConvGeometry& g, bool transposed, bool training) {
    if (GroupedConvolution::fits(type, g)) {
      grouped_.emplace(type, g, transposed);
    } else {
      gemm_.emplace(type, g, transposed, training);
    }
  }
  // Of the epilogue's partial results.
  int64_t partial_tiles() const {
    return grouped_ ? grouped_->partial_tiles() : gemm_->tiles.partial_tiles();
  }
  // Whether the transposed convolution wants its weights' taps turned around.
  bool flips() const { return grouped_.has_value(); }

  void run(Executor& executor, const Source& source, const void* weight, const Epilogue& epilogue) {
    if (grouped_) {
      grouped_->run(executor, source, weight, epilogue);
    } else {
      gemm_->run(executor, source, weight, epilogue);
    }
  }

 private:
  std::optional<GemmConv> gemm_;
  std::optional<GroupedConvolution> grouped_;
};

}  // namespace fastres::cuda

// Launches a whole grouped bottleneck as one kernel: where that is possible, and where it pays.

#pragma once

#include <algorithm>
#include <string>

#include "conv_launch.h"

namespace fastres::cuda {

// A bottleneck's convolutions; `down` is null where the shortcut is x itself.
struct BottleneckGeometry {
  const ConvGeometry& reduce;
  const ConvGeometry& spatial;
  const ConvGeometry& expand;
  const ConvGeometry* down;
};

// What a launch does, for rooflines.
struct Work {
  double bytes = 0, products = 0;  // of tensors; multiply-adds issued

  // In bytes: an A100 issues so many 16-bit multiply-adds in the time that it moves one.
  double cost() const {
    constexpr double kPerByte = 76;
    return std::max(bytes, products / kPerByte);
  }
};

// Products issued for one output value of a grouped 3x3 on tensor cores: whole pairs of chunks.
inline double grouped_products(Dtype type, int64_t width) {
  const int64_t chunks = 9 * std::max<int64_t>(width, 8) / chunk_elements(type);
  return static_cast<double>(ceil_div(chunks, 2) * 2 * chunk_elements(type));
}

class OneKernelBottleneck {
 public:
  BottleneckParams params{};

  OneKernelBottleneck(Dtype type, const BottleneckGeometry& g) : type_(type), geometry_(g) {
    BottleneckParams& p = params;
    p.window = window_of(g.spatial);
    p.batch = narrow(g.reduce.batch);
    p.in_h = narrow(g.reduce.in.h), p.in_w = narrow(g.reduce.in.w);
    p.out_h = narrow(g.spatial.out.h), p.out_w = narrow(g.spatial.out.w);
    p.in_channels = narrow(g.reduce.in_channels);
    p.width = narrow(g.spatial.in_channels);
    p.out_channels = narrow(g.expand.out_channels);
    p.reduce.pitch = p.down.pitch = weight_pitch(1, p.in_channels);
    p.spatial.pitch = weight_pitch(9, group_width());
    p.expand.pitch = weight_pitch(1, p.width);
    choose_tile();
  }

  // Whether the kernel can do it: the 3x3's groups, whole chunks of channels, enough memory. Not in
  // float32, whose products would bind it and whose halves have no room in the registers.
  bool possible() const {
    const int64_t width = group_width(), chunk = chunk_elements(type_);
    return type_ != Dtype::f32 && geometry_.spatial.groups > 1 &&
           geometry_.spatial.out_channels == params.width &&
           (width == 4 || width == 8 || width == 16 || width == 32) && params.width % chunk == 0 &&
           params.in_channels % chunk == 0 && shared_bytes() <= kMaxShared;
  }

  // Whether it takes less time than the convolutions one after the other. It saves the inner
  // activations' way to memory and back, and computes the first convolution's halo again.
  bool pays() const {
    // Fewer blocks than an A100 has multiprocessors leave some of them idle.
    constexpr int64_t kMultiprocessors = 108;
    return blocks() >= kMultiprocessors && work().cost() < apart();
  }

  int64_t blocks() const { return int64_t{params.batch} * params.tiles_h * params.tiles_w; }

  int shared_bytes() const {
    const int64_t channels = grouped_channels(element_size());
    const int64_t pitch = ceil_div(params.patch_w, params.window.stride_w) * params.window.stride_w;
    const int64_t inner =
        ceil_div(params.width, channels) * params.tile_h * kGroupedTileWidth * kGroupedBytes;
    const int64_t bytes = bottleneck_stage_bytes(static_cast<int>(channels)) +
                          params.patch_h * pitch * kGroupedBytes + inner;
    return static_cast<int>(std::min<int64_t>(bytes, INT32_MAX));
  }

  void run(Executor& executor) const {
    executor.run("fastres_grouped_bottleneck_" + std::to_string(group_width()) + suffix(type_),
                 blocks(), kBottleneckThreads, shared_bytes(), params);
  }

  // What every GPU since the A100 gives to a block.
  static constexpr int kMaxShared = 96 * 1024;
  // Two of these fit into an A100's multiprocessor: one multiplies while the other waits.
  static constexpr int kHalfShared = 80 * 1024;

 private:
  int element_size() const { return static_cast<int>(element_bytes(type_)); }
  int64_t group_width() const { return geometry_.spatial.in_channels / geometry_.spatial.groups; }

  void set_tile(int32_t height) {
    BottleneckParams& p = params;
    p.tile_h = height;
    p.tiles_h = narrow(ceil_div(p.out_h, height));
    p.tiles_w = narrow(ceil_div(p.out_w, kGroupedTileWidth));
    p.patch_h = (height - 1) * p.window.stride_h + 2 * p.window.dilation_h + 1;
    p.patch_w = (kGroupedTileWidth - 1) * p.window.stride_w + 2 * p.window.dilation_w + 1;
  }

  // The cheapest tile of those that leave room for a second block; of equals the tallest.
  void choose_tile() {
    int32_t best = 2;
    double least = -1;
    for (int32_t height = 2; height <= kGroupedTileHeight; height += 2) {
      set_tile(height);
      if (least >= 0 && shared_bytes() > kHalfShared) break;
      const double products = work().products;
      if (least < 0 || products <= least) best = height, least = products;
    }
    set_tile(best);
  }

  Work work() const {
    const auto tiles = static_cast<double>(blocks());
    const double in = params.in_channels, width = params.width, out = params.out_channels;
    const auto pixels = static_cast<double>(params.tile_h * kGroupedTileWidth);
    const auto patch =
        static_cast<double>(ceil_div(int64_t{params.patch_h} * params.patch_w, 8) * 8);
    Work w;
    w.products = tiles * (patch * in * width +
                          pixels * width * (grouped_products(type_, group_width()) + out));
    if (geometry_.down != nullptr) w.products += tiles * pixels * in * out;
    w.bytes = image(geometry_.reduce.in, in) + image(geometry_.expand.out, out);
    return w;
  }

  double apart() const {
    const ConvGeometry &reduce = geometry_.reduce, &spatial = geometry_.spatial,
                       &expand = geometry_.expand;
    const double grouped = grouped_products(type_, group_width());
    double cost = conv(reduce, params.in_channels, 0) + conv(spatial, grouped, 0) +
                  conv(expand, params.width, image(expand.out, params.out_channels));
    if (geometry_.down != nullptr) cost += conv(*geometry_.down, params.in_channels, 0);
    return cost;
  }

  // A convolution alone, of so many products a value; `more` bytes are read beside its input.
  double conv(const ConvGeometry& g, double products, double more) const {
    const auto out = static_cast<double>(g.out_channels);
    const Extent read = g.kernel.h == 1 ? g.out : g.in;
    Work w;
    w.products = products * out * static_cast<double>(g.batch * g.out.h * g.out.w);
    w.bytes = image(read, static_cast<double>(g.in_channels)) + image(g.out, out) + more;
    return w.cost();
  }

  double image(Extent size, double channels) const {
    return channels * static_cast<double>(params.batch * size.h * size.w) * element_size();
  }

  Dtype type_;
  BottleneckGeometry geometry_;
};

}  // namespace fastres::cuda

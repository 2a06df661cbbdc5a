#include "pixel_lanes.h"

#include <algorithm>
#include <cstring>

#include "../runtime/cache.h"
#include "../runtime/scratch.h"
#include "../training_kernels.h"

namespace fastres::cpu {
namespace {

constexpr int64_t kLaneBlock = 16;  // pixels side by side
// Pixels beyond whole blocks, up to this many, are multiplied one by one, along the weights' rows:
// half the time of a block at most.
constexpr int64_t kMaxLoosePixels = kLaneBlock / 2;

constexpr float kZeros[64] = {};
constexpr float kOnes[kLaneBlock] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

int64_t pixel_count(const ConvGeometry& g) { return g.batch * g.out.h * g.out.w; }

bool is_row_of_pixels(const Image& image) {
  return image.is_float32_nhwc() && image.pixels_evenly_spaced();
}

// What every output pixel reads, in the order of a row of the weight: the matrix that the weight is
// multiplied with.
class InputMatrix {
 public:
  InputMatrix(const Microkernels& kernels, const Conv& conv)
      : kernels_(kernels),
        conv_(conv),
        taps_(conv.layer.header.taps()),
        length_(taps_ * conv.geometry.in_channels),
        pixels_(pixel_count(conv.geometry)) {
    const int64_t left = pixels_ % kLaneBlock;
    loose_ = left <= kMaxLoosePixels ? left : 0;
    blocks_ = (pixels_ - loose_ + kLaneBlock - 1) / kLaneBlock;
  }

  int64_t length() const { return length_; }
  int64_t blocks() const { return blocks_; }
  int64_t loose() const { return loose_; }
  // Floats of a block's matrix, [length][16].
  int64_t block_stride() const { return length_ * kLaneBlock; }

  // All blocks, then the loose pixels, [length] each.
  const float* load() const {
    float* target = thread_scratch().weights.floats(blocks_ * block_stride() + loose_ * length_);
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t first = block * kLaneBlock;
      const int64_t lanes = std::min(kLaneBlock, pixels_ - first);
      transpose(pixels(first, lanes), lanes, target + block * block_stride());
    }
    float* loose = target + blocks_ * block_stride();
    const Pixels last = pixels(blocks_ * kLaneBlock, loose_);
    for (int64_t i = 0; i < loose_; ++i) {
      copy_in_order(last.data + i * last.stride, loose + i * length_);
    }
    return target;
  }

 private:
  bool taps_outside() const { return taps_ == 1 || conv_.plain.channels_last; }

  // What pixels [first, first + count) read, [taps][channels] each: the image itself where that is
  // one of its pixels each.
  Pixels pixels(int64_t first, int64_t count) const {
    const ConvGeometry& g = conv_.geometry;
    const Image& x = conv_.x;
    const bool same_pixels = g.is_pointwise() && g.stride.h == 1 && g.stride.w == 1;
    if (same_pixels && is_row_of_pixels(x)) {
      return {static_cast<float*>(x.data) + first * x.stride_w, x.stride_w};
    }
    return {gather(first, count), length_};
  }

  // Copies it, [count][taps][channels].
  float* gather(int64_t first, int64_t count) const {
    const ConvGeometry& g = conv_.geometry;
    float* gathered = thread_scratch().inner1.floats(kLaneBlock * length_);
    float* target = gathered;
    Band image;
    int64_t loaded = -1;
    for (int64_t pixel = first; pixel < first + count; ++pixel) {
      const int64_t n = pixel / (g.out.h * g.out.w);
      const int64_t h = pixel / g.out.w % g.out.h;
      const int64_t w = pixel % g.out.w;
      if (n != loaded) image = padded_image(loaded = n);
      const float* at =
          image.data + h * g.stride.h * image.row_stride + w * g.stride.w * image.pixel_stride;
      for (int64_t r = 0; r < g.kernel.h; ++r) {
        for (int64_t s = 0; s < g.kernel.w; ++s) {
          std::memcpy(
              target,
              at + r * g.dilation.h * image.row_stride + s * g.dilation.w * image.pixel_stride,
              static_cast<size_t>(g.in_channels) * sizeof(float));
          target += g.in_channels;
        }
      }
    }
    return gathered;
  }

  Band padded_image(int64_t n) const {
    const ConvGeometry& g = conv_.geometry;
    const Image& x = conv_.x;
    if (x.is_float32_nhwc() && !g.padding.any()) {
      return {reinterpret_cast<float*>(x.at(n, 0, 0)), x.stride_h, x.stride_w};
    }
    const PaddedRows what{n, -g.padding.top, g.in.h + g.padding.top + g.padding.bottom,
                          g.padding.left, g.padding.right};
    return load_band(kernels_, x, what,
                     thread_scratch().input.floats(what.rows * g.padded_width() * g.in_channels),
                     g.in_channels);
  }

  void transpose(Pixels pixels, int64_t lanes, float* target) const {
    PackSource source{};
    source.weight = pixels.data;
    source.lane_stride = pixels.stride;
    source.lanes = lanes;
    // Where a weight has its taps inside, taps and channels change places.
    source.channels = taps_outside() ? length_ : taps_;
    source.taps = length_ / source.channels;
    source.scale = kOnes;
    kernels_.pack_direct(source, target);
  }

  void copy_in_order(const float* gathered, float* target) const {
    if (taps_outside()) {
      std::memcpy(target, gathered, static_cast<size_t>(length_) * sizeof(float));
      return;
    }
    const int64_t channels = length_ / taps_;
    for (int64_t tap = 0; tap < taps_; ++tap) {
      for (int64_t c = 0; c < channels; ++c) target[c * taps_ + tap] = *gathered++;
    }
  }

  const Microkernels& kernels_;
  const Conv& conv_;
  const int64_t taps_;
  const int64_t length_;
  const int64_t pixels_;
  int64_t blocks_;
  int64_t loose_;
};

// One thread's share of the output channels, for all pixels.
class ChannelRange {
 public:
  ChannelRange(const Microkernels& kernels, const Conv& conv, Range channels)
      : kernels_(kernels),
        conv_(conv),
        input_(kernels, conv),
        channels_(channels),
        lanes_(input_.blocks() * kLaneBlock),
        sums_stride_(lanes_ + kMaxLoosePixels) {}

  void run() const {
    const float* input = input_.load();
    float* sums = thread_scratch().sums.floats(channels_.size() * sums_stride_);
    for (int64_t k = 0; k < channels_.size(); ++k) {
      std::fill_n(sums + k * sums_stride_ + lanes_, input_.loose(), 0.0F);
    }
    const int64_t at_once = products_in_cache();
    const int64_t chunks = ceil_div(input_.length(), at_once);
    for (int64_t i = 0; i < chunks; ++i) {
      multiply(input, even_range(input_.length(), chunks, i), sums);
    }
    finish(sums);
  }

 private:
  // How much of each row of the weight is taken at a time: what all pixels read for it stays in the
  // level-2 cache.
  int64_t products_in_cache() const {
    const int64_t bytes = (lanes_ + input_.loose()) * static_cast<int64_t>(sizeof(float));
    return std::max<int64_t>(kLaneBlock, level2_cache_bytes() / 2 / bytes);
  }

  // Sums of the products of [begin, end) of the weight's rows, as many rows at a time as a register
  // tile has: all pixels use them while they are near.
  void multiply(const float* input, Range part, float* sums) const {
    const float* weight =
        static_cast<const float*>(conv_.plain.data) + channels_.begin * input_.length();
    for (int64_t k = 0; k < channels_.size(); k += kernels_.wide_panel_pixels) {
      const int64_t rows = std::min(kernels_.wide_panel_pixels, channels_.size() - k);
      const int64_t next_rows = std::min(kernels_.wide_panel_pixels, channels_.size() - k - rows);
      const float* row = weight + k * input_.length();
      multiply_blocks(input, part, row, rows, next_rows, sums + k * sums_stride_);
      multiply_loose(input, part, row, rows, sums + k * sums_stride_);
    }
  }

  void multiply_blocks(const float* input, Range part, const float* row, int64_t rows,
                       int64_t next_rows, float* sums) const {
    const int64_t panels =
        (lanes_ + kernels_.wide_panel_channels - 1) / kernels_.wide_panel_channels;
    ConvTile t{};
    t.input = row + part.begin;
    t.input_pixel_stride = input_.length();
    t.tap_rows = t.tap_cols = 1;
    t.channels = part.size();
    t.weight_block_stride = input_.block_stride();
    t.shift = kZeros;
    t.rows = 1;
    t.pixels = rows;
    t.residual_pixel_stride = t.output_pixel_stride = sums_stride_;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t lane = panel * kernels_.wide_panel_channels;
      t.weights = input + lane / kLaneBlock * input_.block_stride() + lane % kLaneBlock +
                  part.begin * kLaneBlock;
      t.output = sums + lane;
      t.residual = part.begin > 0 ? t.output : nullptr;
      t.out_channels = std::min(kernels_.wide_panel_channels, lanes_ - lane);
      if (part.size() == input_.length() && next_rows > 0) {
        const Range next = even_range(next_rows * input_.length(), panels, panel);
        t.upcoming.spans[0] = {row + rows * input_.length() + next.begin, next.size()};
      }
      kernels_.igemm(t);
    }
  }

  void multiply_loose(const float* input, Range part, const float* row, int64_t rows,
                      float* sums) const {
    DotTile t{};
    t.row = row + part.begin;
    t.row_stride = input_.length();
    t.rows = rows;
    t.vector = input + input_.blocks() * input_.block_stride() + part.begin;
    t.vector_stride = input_.length();
    t.vectors = input_.loose();
    t.length = part.size();
    t.sums = sums + lanes_;
    t.sums_stride = sums_stride_;
    kernels_.dot(t);
  }

  // Back to channels side by side; scale, shift, residual and activation on the way.
  void finish(const float* sums) const {
    const int64_t pixels = pixel_count(conv_.geometry);
    const ConvLayer& layer = conv_.layer;
    const TrainingKernels& affine = training_kernels_for(selected_isa());
    float* block = thread_scratch().inner1.floats(pixels * kLaneBlock);
    for (int64_t k = channels_.begin; k < channels_.end; k += kLaneBlock) {
      PackSource source{};
      source.weight = sums + (k - channels_.begin) * sums_stride_;
      source.lane_stride = sums_stride_;
      source.lanes = std::min(kLaneBlock, channels_.end - k);
      source.channels = pixels;
      source.taps = 1;
      source.scale = kOnes;
      kernels_.pack_direct(source, block);
      const float* scale = conv_.plain.scale;
      AffineAct f;
      f.main = {kZeros, scale != nullptr ? scale + k : kOnes, layer.shift + k};
      f.residual = {kZeros, kOnes, kZeros};
      f.act = layer.act;
      f.act_slope = layer.act_slope;
      affine.affine_act(f, {block, kLaneBlock}, residual_at(k), output_at(k), pixels, source.lanes);
    }
  }

  ConstPixels residual_at(int64_t channel) const {
    const Image& image = conv_.residual;
    if (image.data == nullptr) return {};
    return {static_cast<const float*>(image.data) + channel, image.stride_w};
  }
  Pixels output_at(int64_t channel) const {
    return {static_cast<float*>(conv_.out.data) + channel, conv_.out.stride_w};
  }

  const Microkernels& kernels_;
  const Conv& conv_;
  const InputMatrix input_;
  const Range channels_;
  const int64_t lanes_;
  const ptrdiff_t sums_stride_;
};

}  // namespace

bool prefers_pixel_lanes(const Conv& conv) {
  const PackedHeader& h = conv.layer.header;
  if (conv.plain.data == nullptr || h.layout != PackedLayout::igemm || h.groups != 1) return false;
  if (conv.plain.type != StorageType::float32 || !is_row_of_pixels(conv.out)) return false;
  if (conv.residual.data != nullptr && !is_row_of_pixels(conv.residual)) return false;
  // Values moved, as long as it takes one of two threads: both transpose all pixels and half of the
  // outputs. Not by the number of threads, so that it is the same sums on any.
  const int64_t length = h.group_in_channels * h.taps();
  const int64_t moved = pixel_count(conv.geometry) * (length + h.out_channels);
  return 4 * moved <= length * h.out_channels;
}

void run_pixel_lanes(const Microkernels& kernels, const Conv& conv) {
  const int64_t blocks = (conv.geometry.out_channels + kLaneBlock - 1) / kLaneBlock;
  const int64_t parts = std::min(thread_count(), blocks);
  parallel_parts(parts, [&](int64_t i) {
    const Range share = even_range(blocks, parts, i);
    const int64_t end = std::min(share.end * kLaneBlock, conv.geometry.out_channels);
    ChannelRange(kernels, conv, {share.begin * kLaneBlock, end}).run();
  });
}

}  // namespace fastres::cpu

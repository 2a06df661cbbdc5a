#include "wgrad.h"

#include <algorithm>

#include "../runtime/buffer_pool.h"
#include "../runtime/cache.h"
#include "../runtime/scratch.h"

namespace fastres::cpu {
namespace {

// A part of the batch: whole images, or rows of one.
struct PixelBlock {
  int64_t image, images;
  int64_t row, rows;
};

// Threads share channels, where their sums are many, or the pixels, each with sums of its own.
class WeightGradient {
 public:
  WeightGradient(const Kernels& kernels, const TrainingConv& conv, const OutputGradient& gradient)
      : kernels_(kernels), conv_(conv), gradient_(gradient), sums_(kernels, conv) {}

  void run(const WeightView& grad_weight) const {
    const int64_t threads = thread_count();
    const int64_t floats = sums_.floats();
    const int64_t shares = sums_.shares();
    const bool by_shares = floats * int64_t{sizeof(float)} > level2_cache_bytes() / 4 &&
                           (shares % threads == 0 || shares >= 4 * threads);
    const int64_t parts = by_shares
                              ? std::min(threads, shares)
                              : std::min(threads, conv_.geometry.batch * conv_.geometry.out.h);
    const int64_t copies = by_shares ? 1 : parts;
    const PooledFloats sums(floats * copies);
    clear_memory(sums.data(), floats * copies * int64_t{sizeof(float)});
    parallel_parts(parts, [&](int64_t i) {
      const Range mine = by_shares ? even_range(shares, parts, i) : Range{0, shares};
      float* target = sums.data() + (by_shares ? 0 : i * floats);
      for (const WeightSums::Piece& piece : sums_.pieces(mine)) {
        const std::vector<PixelBlock> blocks = pixel_blocks(piece);
        const Range all{0, std::ssize(blocks)};
        const Range some = by_shares ? all : even_range(all.size(), parts, i);
        for (int64_t b = some.begin; b < some.end; ++b) {
          const PixelBlock* next = b + 1 < some.end ? &blocks[static_cast<size_t>(b + 1)] : nullptr;
          add(piece, blocks[static_cast<size_t>(b)], next, target);
        }
      }
    });
    finish_wgrad(kernels_.base, sums.data(), floats, copies, grad_weight);
  }

 private:
  // As much of the batch at a time as fits in a quarter of the level-2 cache; in half of it for
  // matrix tiles, for which pixels have to be many.
  std::vector<PixelBlock> pixel_blocks(const WeightSums::Piece& piece) const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t row_floats =
        g.stride.h * g.padded_width() * band_pixel_stride(sums_.input_channels(piece).size()) +
        g.out.w * band_pixel_stride(sums_.output_channels(piece).size());
    const int64_t bytes = level2_cache_bytes() / (sums_.prefers_tiles(piece) ? 2 : 4);
    const int64_t rows = std::max<int64_t>(1, bytes / (row_floats * int64_t{sizeof(float)}));
    std::vector<PixelBlock> blocks;
    if (rows >= g.out.h) {
      const int64_t images = rows / g.out.h;
      for (int64_t n = 0; n < g.batch; n += images) {
        blocks.push_back({n, std::min(images, g.batch - n), 0, g.out.h});
      }
      return blocks;
    }
    const int64_t per_image = ceil_div(g.out.h, rows);
    for (int64_t i = 0; i < g.batch * per_image; ++i) {
      const Range range = even_range(g.out.h, per_image, i % per_image);
      blocks.push_back({i / per_image, 1, range.begin, range.size()});
    }
    return blocks;
  }

  // `next` is the block that comes after; null for none.
  void add(const WeightSums::Piece& piece, const PixelBlock& block, const PixelBlock* next,
           float* target) const {
    WgradBands bands;
    if (next != nullptr) bands.upcoming = upcoming_rows(piece, *next);
    bands.images = block.images;
    bands.rows = block.rows;
    bands.pixels = conv_.geometry.out.w;
    load_input(block, sums_.input_channels(piece), bands);
    load_gradient(block, sums_.output_channels(piece), bands);
    sums_.add(bands, piece, target);
  }

  // Of the block's first image, where whole pixels are read.
  Upcoming upcoming_rows(const WeightSums::Piece& piece, const PixelBlock& block) const {
    const ConvGeometry& g = conv_.geometry;
    Upcoming upcoming;
    if (sums_.output_channels(piece).size() == g.out_channels) {
      upcoming = gradient_.upcoming(block.image, {block.row, block.row + block.rows});
    }
    if (sums_.input_channels(piece).size() == g.in_channels) {
      const int64_t row = std::max<int64_t>(0, block.row * g.stride.h - g.padding.top);
      upcoming.add_rows(conv_.x, block.image, row, row + g.input_rows(block.rows));
    }
    return upcoming;
  }

  void load_input(const PixelBlock& block, Range channels, WgradBands& bands) const {
    const ConvGeometry& g = conv_.geometry;
    if (reads_input_directly(conv_)) {
      bands.input = direct_band(conv_.x, block.image, block.row * g.stride.h);
      bands.input.data += channels.begin;
      bands.input_image_stride = conv_.x.stride_n;
      return;
    }
    PaddedRows rows = padded_rows(g, block.image, block.row, block.rows);
    bands.input_image_stride = rows.rows * g.padded_width() * band_pixel_stride(channels.size());
    float* target =
        thread_scratch().input.floats(block.images * bands.input_image_stride + kChannelBlock);
    for (int64_t i = block.images - 1; i >= 0; --i) {
      rows.n = block.image + i;
      bands.input =
          load_activated(kernels_, conv_, rows, channels, target + i * bands.input_image_stride);
    }
  }

  void load_gradient(const PixelBlock& block, Range channels, WgradBands& bands) const {
    const int64_t pixels = block.rows * conv_.geometry.out.w;
    bands.gradient_image_stride = pixels * band_pixel_stride(channels.size());
    float* target =
        thread_scratch().inner2.floats(block.images * bands.gradient_image_stride + kChannelBlock);
    for (int64_t i = block.images - 1; i >= 0; --i) {
      const OutputGradient::Part part{block.image + i,
                                      {block.row, block.row + block.rows},
                                      {0, conv_.geometry.out.w},
                                      channels};
      bands.gradient = gradient_.load(kernels_, part, target + i * bands.gradient_image_stride);
    }
  }

  const Kernels& kernels_;
  const TrainingConv& conv_;
  const OutputGradient& gradient_;
  const WeightSums sums_;
};

}  // namespace

void run_wgrad(const Kernels& kernels, TrainingConv conv, OutputGradient gradient,
               const WeightView& grad_weight) {
  join_images(conv.geometry, {&conv.x, &gradient.grad(), &gradient.y()});
  WeightGradient(kernels, conv, gradient).run(grad_weight);
}

void finish_wgrad(const Microkernels& kernels, float* sums, int64_t floats, int64_t parts,
                  const WeightView& grad_weight) {
  for (int64_t part = 1; part < parts; ++part) {
    const float* other = sums + part * floats;
    std::transform(other, other + floats, sums, sums, std::plus<>());
  }
  unpack_weight(kernels, sums, grad_weight);
}

}  // namespace fastres::cpu

#include "wgrad.h"

#include <algorithm>

#include "cache.h"
#include "scratch.h"

namespace fastres::cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Input channels that are worked on together: few enough that many pixels fit in the cache, since a
// tile of the weight's gradient is loaded and stored once for all pixels of a band.
constexpr int64_t kChannelsAtOnce = 256;

// Pixels for which a tile of the weight's gradient is loaded and stored once, more or less.
constexpr int64_t kPixelsPerTile = 256;

// A part of the batch: whole images, or rows of one.
struct PixelBlock {
  int64_t image, images;
  int64_t row, rows;
};

// Channels are blocked by 16 on both sides, [block][image][row][pixel][16]: reading a block of many
// pixels in the tensors' own layout, a power of two apart, would use a corner of the cache only.
//
// A unit is a block of output channels. Its section is the input channels that it meets: its group,
// or with narrow groups the block of the same numbers.
class WeightGradient {
 public:
  WeightGradient(const Kernels& kernels, const TrainingConv& conv, const OutputGradient& gradient)
      : kernels_(kernels),
        conv_(conv),
        gradient_(gradient),
        header_(header_of(conv.weight, false, all_taps(conv.weight.kernel.h),
                          all_taps(conv.weight.kernel.w))),
        lanes_(header_.layout == PackedLayout::lanes),
        section_in_(lanes_ ? kChannelBlock : header_.group_in_channels),
        section_out_(lanes_ ? kChannelBlock : header_.group_out_channels()),
        section_units_(lanes_ ? 1 : header_.blocks()),
        units_(lanes_ ? header_.blocks() : header_.blocks() * header_.groups),
        width_(std::min(section_in_, kChannelBlock)) {}

  void run(const WeightView& grad_weight) const {
    const int64_t threads = thread_count();
    const bool by_units = units_ % threads == 0 || units_ >= 4 * threads;
    const std::vector<PixelBlock> blocks = pixel_blocks();
    const int64_t pixel_parts =
        by_units ? 1 : std::min(threads, static_cast<int64_t>(blocks.size()));
    const int64_t unit_parts = by_units ? std::min(threads, units_) : 1;
    const int64_t floats = header_.payload_floats();
    const PooledFloats sums(floats * pixel_parts);
    parallel_parts(unit_parts * pixel_parts, [&](int64_t i) {
      const Range units = even_range(units_, unit_parts, i % unit_parts);
      const int64_t part = i / unit_parts;
      const Range mine = even_range(static_cast<int64_t>(blocks.size()), pixel_parts, part);
      float* target = sums.data() + part * floats;
      std::fill(target + units.begin * header_.block_stride(),
                target + units.end * header_.block_stride(), 0.0F);
      run_units(units, blocks.data() + mine.begin, mine.size(), target);
    });
    for (int64_t part = 1; part < pixel_parts; ++part) {
      const float* other = sums.data() + part * floats;
      std::transform(other, other + floats, sums.data(), sums.data(), std::plus<>());
    }
    unpack_weight(sums.data(), grad_weight);
  }

 private:
  int64_t sections_at_once() const {
    return std::max<int64_t>(1, kChannelsAtOnce / (ceil_div(section_in_, width_) * width_));
  }

  // As much of the batch at a time as fits in the level-2 cache.
  std::vector<PixelBlock> pixel_blocks() const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t sections = ceil_div(units_, section_units_);
    const int64_t channels = std::min(kChannelsAtOnce, sections * section_in_);
    const int64_t row_bytes =
        g.stride.h * g.padded_width() * channels * static_cast<int64_t>(sizeof(float));
    const int64_t rows = std::clamp<int64_t>(
        std::min(level2_cache_bytes() / 2 / row_bytes, kPixelsPerTile / g.out.w), 1,
        g.out.h * g.batch);
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

  // What is worked on together: sections [begin, end), and of their input channels a part.
  struct Piece {
    Range sections;
    Range channels;  // within each section
    int64_t width_blocks() const { return ceil_div(channels.size(), kChannelBlock); }
  };

  void run_units(Range units, const PixelBlock* blocks, int64_t count, float* sums) const {
    const Range sections{units.begin / section_units_, ceil_div(units.end, section_units_)};
    const int64_t at_once = sections_at_once();
    for (int64_t s = sections.begin; s < sections.end; s += at_once) {
      for (int64_t c = 0; c < section_in_; c += kChannelsAtOnce) {
        const Piece piece{{s, std::min(s + at_once, sections.end)},
                          {c, std::min(c + kChannelsAtOnce, section_in_)}};
        for (int64_t i = 0; i < count; ++i) run_piece(piece, units, blocks[i], sums);
      }
    }
  }

  void run_piece(const Piece& piece, Range units, const PixelBlock& block, float* sums) const {
    const float* input = load_input(piece, block);
    const int64_t section_floats = piece.width_blocks() * input_block_floats(block);
    const Range mine{std::max(units.begin, piece.sections.begin * section_units_),
                     std::min(units.end, piece.sections.end * section_units_)};
    for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
      WgradTile tile = tile_of(block);
      tile.grad = load_gradient(unit, block);
      const float* section =
          input + (unit / section_units_ - piece.sections.begin) * section_floats;
      run_tiles(tile, section, piece.channels, block, sums + unit * header_.block_stride());
    }
  }

  void run_tiles(WgradTile tile, const float* section, Range channels, const PixelBlock& block,
                 float* sums) const {
    if (lanes_) {
      tile.input = section;
      tile.sums = sums;
      return kernels_.training.wgrad_lanes(tile, header_.group_in_channels);
    }
    // The taps of a kernel row are adjacent in memory: one run instead of several short ones.
    const bool joined =
        width_ == section_in_ && conv_.geometry.dilation.w == 1 && section_in_ < kChannelBlock;
    for (int64_t r = 0; r < tile.tap_rows; ++r) {
      for (int64_t s = 0; s < (joined ? 1 : tile.tap_cols); ++s) {
        for (int64_t c = channels.begin; c < channels.end; c += width_) {
          const int64_t b = (c - channels.begin) / width_;
          tile.channels = joined ? tile.tap_cols * section_in_ : std::min(width_, channels.end - c);
          tile.input = section + b * input_block_floats(block) + r * tile.tap_row_stride +
                       s * tile.tap_col_stride;
          tile.sums = sums + ((r * tile.tap_cols + s) * section_in_ + c) * kChannelBlock;
          kernels_.training.wgrad(tile);
        }
      }
    }
  }

  WgradTile tile_of(const PixelBlock& block) const {
    const ConvGeometry& g = conv_.geometry;
    const ptrdiff_t row = g.padded_width() * width_;
    WgradTile tile{};
    tile.input_image_stride = g.input_rows(block.rows) * row;
    tile.input_row_stride = g.stride.h * row;
    tile.input_pixel_stride = g.stride.w * width_;
    tile.images = block.images;
    tile.rows = block.rows;
    tile.pixels = g.out.w;
    tile.tap_rows = g.kernel.h;
    tile.tap_cols = g.kernel.w;
    tile.tap_row_stride = g.dilation.h * row;
    tile.tap_col_stride = g.dilation.w * width_;
    return tile;
  }

  int64_t input_block_floats(const PixelBlock& block) const {
    const ConvGeometry& g = conv_.geometry;
    return block.images * g.input_rows(block.rows) * g.padded_width() * width_;
  }

  // The piece's activated input, padded with zeros.
  const float* load_input(const Piece& piece, const PixelBlock& block) const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t block_floats = input_block_floats(block);
    const int64_t blocks = piece.width_blocks();
    ThreadScratch& memory = thread_scratch();
    float* target = memory.input.floats(piece.sections.size() * blocks * block_floats);
    const int64_t rows = g.input_rows(block.rows);
    for (int64_t i = 0; i < block.images * rows; ++i) {
      const int64_t h = block.row * g.stride.h - g.padding.top + i % rows;
      float* row = target + i * g.padded_width() * width_;
      const bool inside = h >= 0 && h < g.in.h;
      for (int64_t s = piece.sections.begin; s < piece.sections.end; ++s) {
        for (int64_t b = 0; b < blocks; ++b, row += block_floats) {
          const int64_t first = piece.channels.begin + b * kChannelBlock;
          const Range channels{
              s * section_in_ + first,
              std::min(s * section_in_ + std::min(first + width_, section_in_), g.in_channels)};
          if (inside) {
            load_input_row(block.image + i / rows, h, channels, row);
          } else {
            std::fill_n(row, g.padded_width() * width_, 0.0F);
          }
        }
      }
    }
    return target;
  }

  // At most a block's channels of a row, zero in lanes that it has not.
  void load_input_row(int64_t n, int64_t h, Range channels, float* target) const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t count = channels.size();
    float* inside = target + g.padding.left * width_;
    if (count < width_) {
      std::fill_n(target, g.padded_width() * width_, 0.0F);
    } else {
      std::fill_n(target, g.padding.left * width_, 0.0F);
      std::fill_n(inside + g.in.w * width_, g.padding.right * width_, 0.0F);
    }
    float* scratch = thread_scratch().inner1.floats(g.in.w * width_);
    const ConstPixels source = row_pixels(kernels_.base, conv_.x, n, h, channels, scratch);
    if (!conv_.has_prologue) {
      for (int64_t i = 0; i < g.in.w; ++i) {
        std::copy_n(source.data + i * source.stride, count, inside + i * width_);
      }
      return;
    }
    AffineAct prologue = conv_.prologue;
    prologue.main = prologue.main.from(channels.begin);
    kernels_.training.affine_act(prologue, source, {}, {inside, width_}, g.in.w, count);
  }

  // The gradient of one block of output channels, zero in lanes that it has not.
  const float* load_gradient(int64_t unit, const PixelBlock& block) const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t section = unit / section_units_;
    const int64_t first = section * section_out_ + unit % section_units_ * kChannelBlock;
    const int64_t end = std::min((section + 1) * section_out_, g.out_channels);
    const int64_t count = std::min(kChannelBlock, end - first);
    ThreadScratch& memory = thread_scratch();
    const int64_t row_floats = g.out.w * kChannelBlock;
    float* target = memory.output.floats(block.images * block.rows * row_floats);
    float* scratch = memory.residual.floats(gradient_.scratch_floats(count));
    if (count < kChannelBlock) {
      std::fill_n(target, block.images * block.rows * row_floats, 0.0F);
    }
    for (int64_t i = 0; i < block.images * block.rows; ++i) {
      const OutputGradient::Part part{block.image + i / block.rows,
                                      block.row + i % block.rows,
                                      {0, g.out.w},
                                      {first, first + count}};
      gradient_.load(kernels_, part, {target + i * row_floats, kChannelBlock}, scratch);
    }
    return target;
  }

  const Kernels& kernels_;
  const TrainingConv& conv_;
  const OutputGradient& gradient_;
  const PackedHeader header_;
  const bool lanes_;
  const int64_t section_in_;     // input channels of a section
  const int64_t section_out_;    // output channels
  const int64_t section_units_;  // blocks of 16 output channels
  const int64_t units_;
  const int64_t width_;  // of a block of input channels
};

}  // namespace

void run_wgrad(const Kernels& kernels, TrainingConv conv, OutputGradient gradient,
               const WeightView& grad_weight) {
  join_images(conv.geometry, {&conv.x, &gradient.grad(), &gradient.y()});
  WeightGradient(kernels, conv, gradient).run(grad_weight);
}

}  // namespace fastres::cpu

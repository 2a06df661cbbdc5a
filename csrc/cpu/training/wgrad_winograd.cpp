// The gradient of a dense 3x3's weight by Winograd: sixteen matrix products of transformed tiles of
// the input and of the output's gradient, see microkernels/winograd_wgrad.cpp.

#include <algorithm>
#include <functional>

#include "../convolution/winograd_batch.h"
#include "../runtime/buffer_pool.h"
#include "../runtime/cache.h"
#include "../runtime/scratch.h"
#include "wgrad.h"
#include "wgrad_split.h"

namespace fastres::cpu {
namespace {

// Tiles after which a register tile of sums goes back to memory: their values stay in the level-1
// cache meanwhile.
constexpr int64_t kTilesAtOnce = 128;

class WinogradWeightGradient {
 public:
  WinogradWeightGradient(const Kernels& kernels, const TrainingConv& conv,
                         const OutputGradient& gradient)
      : kernels_(kernels),
        conv_(conv),
        gradient_(gradient),
        header_(header_of(conv.weight, false, all_taps(3), all_taps(3), true)),
        position_stride_(header_.blocks() * header_.block_stride()) {}

  void run(const WeightView& grad_weight) const {
    const bool batches = trains_in_winograd_batches(conv_.weight);
    const int64_t parts = batches ? 1 : std::min(thread_count(), row_slices().count());
    const int64_t floats = header_.payload_floats();
    const PooledFloats sums(parts * floats);
    clear_memory(sums.data(), parts * floats * int64_t{sizeof(float)});
    if (batches) {
      run_batches(sums.data());
    } else {
      run_rows(parts, sums.data());
    }
    PackedHeader direct = header_;
    direct.layout = PackedLayout::igemm;
    const PooledFloats taps(direct.payload_floats());
    parallel_parts(header_.blocks(), [&](int64_t block) {
      float* first = sums.data() + block * header_.block_stride();
      for (int64_t part = 1; part < parts; ++part) add_block(first + part * floats, first);
      kernels_.training.winograd_taps(first, position_stride_, header_.group_in_channels,
                                      taps.data() + block * direct.block_stride());
    });
    unpack_weight(kernels_.base, taps.data(), grad_weight);
  }

 private:
  // Few tiles at a time, whose values and the sums of a thread stay in its level-2 cache.
  Slices row_slices() const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t tile_row_floats = 8 * g.out.w * (g.in_channels + g.out_channels);
    const int64_t room = level2_cache_bytes() / int64_t{sizeof(float)} * 7 / 8 -
                         std::min(header_.payload_floats(), level2_cache_bytes() / 8);
    return {g.batch, g.out.h, 2 * std::max<int64_t>(1, room / 2 / tile_row_floats), 2};
  }

  void run_rows(int64_t parts, float* sums) const {
    const Slices slices = row_slices();
    parallel_parts(parts, [&](int64_t part) {
      const Range mine = even_range(slices.count(), parts, part);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        add_rows(slices[i], sums + part * header_.payload_floats());
      }
    });
  }

  void add_rows(Slices::Slice slice, float* sums) const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t image = slice.image, row = slice.row;
    const Extent rows{slice.rows, g.out.w};
    const TileBuffer input(1, rows, g.in_channels), gradient(1, rows, g.out_channels);
    slice.image = slice.row = 0;
    load(image, row, slice, input, gradient);
    add({0, kWinogradPositions}, {0, header_.blocks()}, input.all(), gradient.all(), sums);
  }

  // All tiles of many images, then position by position.
  void run_batches(float* sums) const {
    const ConvGeometry& g = conv_.geometry;
    for_each_winograd_batch(g.batch, g.out, g.in_channels + g.out_channels,
                            [&](Range images) { run_batch(images, sums); });
  }

  void run_batch(Range images, float* sums) const {
    const ConvGeometry& g = conv_.geometry;
    const TileBuffer input(images.size(), g.out, g.in_channels);
    const TileBuffer gradient(images.size(), g.out, g.out_channels);
    const Slices slices = tile_slices(images.size(), g.out,
                                      g.padded_width() * g.in_channels + g.out.w * g.out_channels);
    parallel_parts(slices.count(), [&](int64_t i) {
      load(images.begin + slices[i].image, slices[i].row, slices[i], input, gradient);
    });
    const int64_t shares = std::min(header_.blocks(), 1 + thread_count() / 4);
    parallel_parts(kWinogradPositions * shares, [&](int64_t i) {
      const int64_t position = i / shares;
      add({position, position + 1}, even_range(header_.blocks(), shares, i % shares), input.all(),
          gradient.all(), sums);
    });
  }

  // Transforms rows of an image, which are `place` of the buffers.
  void load(int64_t n, int64_t row, const Slices::Slice& place, const TileBuffer& input,
            const TileBuffer& gradient) const {
    const ConvGeometry& g = conv_.geometry;
    const PaddedRows what = padded_rows(g, n, row, place.rows);
    const Band x = load_activated(
        kernels_, conv_, what, {0, g.in_channels},
        thread_scratch().input.floats(band_floats(what.rows * g.padded_width(), g.in_channels)));
    kernels_.base.winograd_input(input.of(place), x.data, x.row_stride, x.pixel_stride, what.rows,
                                 g.padded_width());
    const OutputGradient::Part part{n, {row, row + place.rows}, {0, g.out.w}, {0, g.out_channels}};
    const Band dy = gradient_.load(
        kernels_, part,
        thread_scratch().inner2.floats(band_floats(place.rows * g.out.w, g.out_channels)));
    kernels_.training.winograd_gradient(
        gradient.of(place), {dy.data, dy.row_stride, dy.pixel_stride, place.rows, g.out.w});
  }

  void add(Range positions, Range blocks, const WinogradTiles& input, const WinogradTiles& gradient,
           float* sums) const {
    const int64_t tiles = input.tile_rows * input.tile_cols;
    WgradTile t{};
    t.input_pixel_stride = input.tile_stride;
    t.grad_pixel_stride = gradient.tile_stride;
    t.images = t.rows = t.tap_rows = t.tap_cols = 1;
    t.channels = header_.group_in_channels;
    t.sums_block_stride = header_.block_stride();
    t.blocks = blocks.size();
    // Beyond the last output channel nothing was written that could be split.
    const int64_t out_channels =
        std::min<int64_t>(blocks.end * kChannelBlock, header_.out_channels) -
        blocks.begin * kChannelBlock;
    for (int64_t position = positions.begin; position < positions.end; ++position) {
      t.input = input.at(position, 0);
      t.grad = gradient.at(position, 0) + blocks.begin * kChannelBlock;
      t.sums = sums + position * position_stride_ + blocks.begin * header_.block_stride();
      t.pixels = tiles;
      add_products(t, out_channels);
    }
  }

  // Of one position.
  void add_products(const WgradTile& t, int64_t out_channels) const {
    if (prefers_split_sums(kernels_.base, t.channels, out_channels, 1)) {
      add_split_sums(kernels_.base, t, out_channels, {},
                     [this](const WgradTile& part) { add_blocks(part); });
    } else {
      add_blocks(t);
    }
  }

  void add_blocks(const WgradTile& all) const {
    const int64_t parts = ceil_div(all.pixels, kTilesAtOnce);
    for (int64_t part = 0; part < parts; ++part) {
      const Range mine = even_range(all.pixels, parts, part);
      WgradTile t = all;
      t.pixels = mine.size();
      t.input += mine.begin * t.input_pixel_stride;
      t.grad += mine.begin * t.grad_pixel_stride;
      for (int64_t left = all.blocks; left > 0; left -= t.blocks) {
        t.blocks = std::min<int64_t>(2, left);
        kernels_.training.wgrad(t);
        t.grad += t.blocks * kChannelBlock;
        t.sums += t.blocks * t.sums_block_stride;
      }
    }
  }

  // Adds a block's sums, of all positions.
  void add_block(const float* from, float* to) const {
    for (int64_t position = 0; position < kWinogradPositions; ++position) {
      const int64_t at = position * position_stride_;
      std::transform(from + at, from + at + header_.block_stride(), to + at, to + at,
                     std::plus<>());
    }
  }

  const Kernels& kernels_;
  const TrainingConv& conv_;
  const OutputGradient& gradient_;
  const PackedHeader header_;
  const int64_t position_stride_;
};

}  // namespace

void run_winograd_wgrad(const Kernels& kernels, const TrainingConv& conv,
                        const OutputGradient& gradient, const WeightView& grad_weight) {
  WinogradWeightGradient(kernels, conv, gradient).run(grad_weight);
}

}  // namespace fastres::cpu

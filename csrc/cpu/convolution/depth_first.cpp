#include "depth_first.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "../runtime/cache.h"
#include "../runtime/scratch.h"
#include "../runtime/shares.h"
#include "conv_rows.h"
#include "panels.h"
#include "split_rows.h"

namespace fastres::cpu {
namespace {

// Whether the block's weights stay in the level-2 cache from one band to the next, beside the rows
// of x and y. In bfloat16 parts they take half as much again, and so do the rows.
bool weights_stay_in_cache(const Microkernels& kernels, const Bottleneck& block) {
  int64_t all =
      weight_bytes(block.reduce) + weight_bytes(block.spatial) + weight_bytes(block.expand);
  if (block.down.has_value()) all += weight_bytes(*block.down);
  const bool tiles = prefers_tiles(kernels, block.reduce, block.in.w);
  return all <= (tiles ? level2_cache_bytes() * 3 / 10 : level2_cache_bytes());
}

// One thread's walk down the rows of images.
class BandWalker {
 public:
  // `start` is where, between 0 and 1, to begin with each layer's panels; `pairs` are the pairs of
  // output rows that there are to do.
  BandWalker(const Microkernels& kernels, const Bottleneck& block, double start, int64_t pairs)
      : kernels_(kernels),
        block_(block),
        start_(start),
        spatial_(arranged(kernels, block.spatial, {0, panel_count(kernels, block.spatial)})),
        stride1_(scratch_pixel_stride(block.spatial)),
        channels2_(block.spatial.header.out_channels),
        padded_width_(block.in.w + 2 * block.dilation.w),
        inner1_row_(padded_width_ * stride1_),
        inner2_row_(block.out.w * channels2_),
        small_weights_(weights_stay_in_cache(kernels, block)),
        reduce_stores_(stores(block.reduce, block.in.w)),
        spatial_stores_(stores(block.spatial, block.out.w)),
        expand_stores_(stores(block.expand, block.out.w)),
        stored_input_(reduce_stores_ && block.x.is_bfloat16_nhwc()),
        stored_output_(expand_stores_ && (block.down.has_value() ? stores(*block.down, block.out.w)
                                                                 : block.x.is_bfloat16_nhwc())),
        stored_inner1_(reduce_stores_ && spatial_stores_),
        stored_inner2_(spatial_stores_ && expand_stores_),
        direct_output_(stored_output_ || block.y.type == StorageType::float32),
        kept_{kept(block.reduce, block.in.w, pairs, 0), kept(block.spatial, block.out.w, pairs, 1),
              kept(block.expand, block.out.w, pairs, 2),
              block.down.has_value() ? kept(*block.down, block.out.w, pairs, 3) : std::nullopt} {}

  // Which of some pairs of output rows, of all images, to do first. Pairs, since Winograd's tiles
  // are of two rows.
  Range first_of(Range pairs) const {
    return first_band(pairs, pairs_per_image(), std::max<int64_t>(1, rows_in_cache() / 2));
  }

  // A band, and what comes after it. Of a band that begins where the last one ended nothing is
  // computed twice.
  void walk(Range pairs, Range left) {
    const int64_t n = pairs.begin / pairs_per_image();
    const int64_t row = 2 * (pairs.begin % pairs_per_image());
    const int64_t rows = std::min(2 * pairs.size(), block_.out.h - row);
    if (pairs.begin != next_pair_ || row == 0)
      computed_ = row * block_.stride.h - block_.dilation.h;
    computed_ = advance(n, row, rows, computed_);
    next_pair_ = pairs.end;
    const bool goes_on = left.size() > 0 && left.begin % pairs_per_image() != 0;
    run_band(n, row, rows, goes_on ? computed_ : block_.in.h);
  }

 private:
  int64_t pairs_per_image() const { return ceil_div(block_.out.h, 2); }

  // Whether tiles read and write bfloat16 values as they are stored.
  bool stores(const ConvLayer& layer, int64_t pixels) const {
    return multiplies_bfloat16(kernels_) && prefers_tiles(kernels_, layer, pixels);
  }

  std::optional<SplitPanels> kept(const ConvLayer& layer, int64_t pixels, int64_t pairs,
                                  size_t i) const {
    const int64_t bands = 2 * pairs / rows_in_cache();
    return kept_panels(kernels_, layer, pixels, bands, thread_scratch().kept_panels[i]);
  }

  static int64_t row_floats(const Image& image) { return image.width * image.channels; }

  int64_t inner_rows(int64_t rows) const {
    return (rows - 1) * block_.stride.h + 2 * block_.dilation.h + 1;
  }

  int64_t rows_in_cache() const {
    const int64_t floats = level2_cache_bytes() / 2 / static_cast<int64_t>(sizeof(float));
    const int64_t halo = 2 * block_.dilation.h * inner1_row_;
    int64_t per_row = block_.stride.h * inner1_row_ + inner2_row_;
    // With the weights there the rows of x stay until the shortcut needs them, and there is room
    // for the rows that are fetched meanwhile. Larger weights are read less often by higher bands.
    if (small_weights_)
      per_row += 2 * (block_.stride.h * row_floats(block_.x) + row_floats(block_.y));
    return std::clamp<int64_t>((floats - halo) / per_row, 2, block_.out.h + 1);
  }

  // An inner activation in scratch memory: bfloat16 values where tiles write and read it.
  struct Inner {
    char* data;
    bool stored;

    int64_t bytes(int64_t values) const {
      return values * static_cast<int64_t>(stored ? sizeof(Bfloat16) : sizeof(float));
    }
    Inner from(int64_t value) const { return {data + bytes(value), stored}; }
    void clear(int64_t first, int64_t values) const {
      std::memset(data + bytes(first), 0, static_cast<size_t>(bytes(values)));
    }
    void set(Band& band, Bfloat16Band& band16, int64_t row_stride, int64_t pixel_stride) const {
      if (stored) {
        band = {};
        band16 = {reinterpret_cast<Bfloat16*>(data), row_stride, pixel_stride};
      } else {
        band = {reinterpret_cast<float*>(data), row_stride, pixel_stride};
        band16 = {};
      }
    }
  };

  Inner inner1() const {
    float* data = thread_scratch().inner1.floats(inner_rows(rows_in_cache()) * inner1_row_);
    return {reinterpret_cast<char*>(data), stored_inner1_};
  }
  Inner inner2() const {
    float* data = thread_scratch().inner2.floats(rows_in_cache() * inner2_row_);
    return {reinterpret_cast<char*>(data), stored_inner2_};
  }

  // Brings the first activation to the rows that output rows [row, row + rows) need: the rows that
  // the band before has left are moved to the top, the others computed. `computed` is the first
  // inner row, in image coordinates, that has not been computed yet; returns the new one.
  int64_t advance(int64_t n, int64_t row, int64_t rows, int64_t computed) {
    const int64_t begin = row * block_.stride.h - block_.dilation.h;
    const int64_t end = begin + inner_rows(rows);
    const Inner buffer = inner1();
    const int64_t kept = std::max<int64_t>(0, computed - begin);
    if (kept > 0) {
      std::memmove(buffer.data, buffer.from(last_rows_offset_ - kept * inner1_row_).data,
                   static_cast<size_t>(buffer.bytes(kept * inner1_row_)));
    }
    last_rows_offset_ = (end - begin) * inner1_row_;
    const ConvLayer reduce = fetching_if_small(block_.reduce, block_.y, n, row, row + rows);
    fill_inner1(reduce, n, std::max(begin, computed), end, buffer.from(kept * inner1_row_));
    return end;
  }

  // Inner rows [begin, end) to `target`; those outside the image are padding.
  void fill_inner1(const ConvLayer& reduce, int64_t n, int64_t begin, int64_t end,
                   const Inner& target) {
    // Of these rows, [above, below) are inside the image; either end may be all there is.
    const int64_t rows = end - begin;
    const int64_t above = std::clamp<int64_t>(-begin, 0, rows);
    const int64_t below = std::clamp<int64_t>(block_.in.h - begin, above, rows);
    const Inner inside = target.from(above * inner1_row_);
    target.clear(0, above * inner1_row_);
    target.clear(below * inner1_row_, (rows - below) * inner1_row_);
    if (above == below) return;
    const int64_t border = block_.dilation.w * stride1_;
    for (int64_t h = 0; h < below - above; ++h) {
      inside.clear(h * inner1_row_, border);
      inside.clear((h + 1) * inner1_row_ - border, border);
    }
    const int64_t bands = reduce_bands(below - above);
    for (int64_t i = 0; i < bands; ++i) {
      const Range part = even_range(below - above, bands, i);
      ConvBand band;
      band.rows = part.size();
      band.pixels = block_.in.w;
      const int64_t row = begin + above + part.begin;
      set_input(band, n, row, band.rows, thread_scratch().input);
      inside.from(part.begin * inner1_row_ + border)
          .set(band.output, band.output16, inner1_row_, stride1_);
      run(reduce, 0, band);
    }
  }

  // Matrix tiles take fewer of the input's rows at a time.
  int64_t reduce_bands(int64_t rows) const {
    if (!prefers_tiles(kernels_, block_.reduce, block_.in.w)) return 1;
    const int64_t at_once =
        std::max<int64_t>(1, split_rows_in_cache(kernels_, block_.reduce, block_.in.w));
    return ceil_div(rows, at_once);
  }

  // `next_row` is the first row of x that the band after this one reads first.
  void run_band(int64_t n, int64_t row, int64_t rows, int64_t next_row) {
    ConvBand spatial;
    spatial.rows = rows;
    spatial.pixels = block_.out.w;
    inner1().set(spatial.input, spatial.input16, inner1_row_, stride1_);
    inner2().set(spatial.output, spatial.output16, inner2_row_, channels2_);
    run(spatial_, 1, spatial);

    ConvBand expand;
    expand.rows = rows;
    expand.pixels = block_.out.w;
    expand.input = spatial.output;
    expand.input16 = spatial.output16;
    if (stored_output_) {
      expand.output16 = direct_band16(block_.y, n, row);
    } else {
      expand.output = output_rows(n, row, rows);
    }
    set_shortcut(expand, n, row, rows);
    const int64_t next_rows = rows * block_.stride.h;
    run(fetching_if_small(block_.expand, block_.x, n, next_row, next_row + next_rows), 2, expand);
    if (!direct_output_) {
      store_band(kernels_, expand.output, block_.y, n, row, rows, 0, block_.y.channels);
    }
  }

  // The shortcut's convolution goes to the output itself, where the last convolution adds it.
  void set_shortcut(ConvBand& expand, int64_t n, int64_t row, int64_t rows) {
    Scratch& scratch = thread_scratch().residual;
    if (block_.down.has_value()) {
      ConvBand band = expand;
      band.input = {};
      band.input16 = {};
      const int64_t first = row * block_.stride.h, count = (rows - 1) * block_.stride.h + 1;
      if (stored_output_) {
        set_input(band, n, first, count, scratch);
      } else {
        band.input = input_rows(n, first, count, scratch);
      }
      run(*block_.down, 3, band);
      expand.residual = expand.output;
      expand.residual16 = expand.output16;
    } else if (stored_output_) {
      expand.residual16 = direct_band16(block_.x, n, row);
    } else {
      expand.residual = input_rows(n, row, rows, scratch);
    }
  }

  void set_input(ConvBand& band, int64_t n, int64_t row, int64_t rows, Scratch& scratch) const {
    if (stored_input_) {
      band.input16 = direct_band16(block_.x, n, row);
    } else {
      band.input = input_rows(n, row, rows, scratch);
    }
  }

  Band input_rows(int64_t n, int64_t row, int64_t rows, Scratch& scratch) const {
    return float_rows(kernels_, block_.x, n, {row, row + rows}, scratch);
  }

  Band output_rows(int64_t n, int64_t row, int64_t rows) const {
    const Image& y = block_.y;
    if (direct_output_) return direct_band(y, n, row);
    const int64_t row_stride = y.width * y.channels;
    return {thread_scratch().output.floats(rows * row_stride), row_stride, y.channels};
  }

  // Only layers with few weights, which leave tiles the time for other lines.
  ConvLayer fetching_if_small(ConvLayer layer, const Image& image, int64_t n, int64_t begin,
                              int64_t end) const {
    const bool spare_time = small_weights_ && weight_bytes(layer) <= level2_cache_bytes() / 4;
    if (spare_time) layer.upcoming.add_rows(image, n, begin, end);
    return layer;
  }

  void run(ConvLayer layer, size_t i, const ConvBand& band) {
    if (kept_[i].has_value()) layer.split_panels = &*kept_[i];
    const int64_t panels = panel_count(kernels_, layer);
    layer.first_panel = static_cast<int64_t>(start_ * static_cast<double>(panels));
    conv_rows(kernels_, layer, band, {0, panels});
  }

  const Microkernels& kernels_;
  const Bottleneck& block_;
  const double start_;
  const ConvLayer spatial_;
  const int64_t stride1_;  // floats between pixels
  const int64_t channels2_;
  const int64_t padded_width_;
  const int64_t inner1_row_;
  const int64_t inner2_row_;
  const bool small_weights_;
  const bool reduce_stores_, spatial_stores_, expand_stores_;
  const bool stored_input_, stored_output_, stored_inner1_, stored_inner2_;
  const bool direct_output_;
  std::array<std::optional<SplitPanels>, ThreadScratch::kKeptPanels> kept_;
  int64_t last_rows_offset_ = 0;
  // The pair after the last band, and the first inner row that has not been computed for it.
  int64_t next_pair_ = -1;
  int64_t computed_ = 0;
};

}  // namespace

void run_depth_first(const Microkernels& kernels, const Bottleneck& block) {
  const int64_t pairs_per_image = (block.out.h + 1) / 2;
  const int64_t pairs = block.batch * pairs_per_image;
  if (pairs == 0) return;
  const int64_t parts = std::min(thread_count(), pairs);
  Shares shares(pairs, parts, prefers_tiles(kernels, block.reduce, block.in.w));
  parallel_parts(parts, [&](int64_t i) {
    BandWalker walker(kernels, block, static_cast<double>(i) / static_cast<double>(parts),
                      ceil_div(pairs, parts));
    shares.run(
        i, [&](Range pairs) { return walker.first_of(pairs); },
        [&](Range pairs, Range left) { walker.walk(pairs, left); });
  });
}

}  // namespace fastres::cpu

#include "conv.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "../runtime/buffer_pool.h"
#include "../runtime/cache.h"
#include "../runtime/scratch.h"
#include "../runtime/shares.h"
#include "bfloat16_weight.h"
#include "conv_rows.h"
#include "conv_winograd.h"
#include "panels.h"
#include "pixel_lanes.h"
#include "split_rows.h"
#include "weights.h"
#include "winograd.h"

namespace fastres::cpu {
namespace {

// A 1x1 convolution with stride 1 over evenly spaced pixels has no image borders: every pixel
// becomes a row of its own, and threads and bands may cut anywhere.
void flatten_pixels(Conv& conv) {
  ConvGeometry& g = conv.geometry;
  const bool pointwise = g.is_pointwise() && g.stride.h == 1 && g.stride.w == 1;
  if (!pointwise || !conv.x.pixels_evenly_spaced() || !conv.out.pixels_evenly_spaced()) return;
  if (conv.residual.data != nullptr && !conv.residual.pixels_evenly_spaced()) return;
  const int64_t pixels = g.batch * g.out.h * g.out.w;
  const auto flatten = [&](Image& image) {
    image.stride_h = image.stride_w;
    image.batch = 1;
    image.height = pixels;
    image.width = 1;
  };
  flatten(conv.x);
  flatten(conv.out);
  if (conv.residual.data != nullptr) flatten(conv.residual);
  g.batch = 1;
  g.in = g.out = {pixels, 1};
}

// A strided 1x1 is one of stride 1 over the pixels that it reads.
void skip_pixels(Conv& conv) {
  ConvGeometry& g = conv.geometry;
  if (!g.is_pointwise()) return;
  conv.x = strided_image(conv.x, g.stride);
  g.in = g.out;
  g.stride = conv.layer.stride = {1, 1};
}

void prepare(Conv& conv) {
  conv.layer.outputs = shared_outputs(conv.layer.header, conv.geometry.batch, conv.geometry.out);
  skip_pixels(conv);
  flatten_pixels(conv);
  join_images(conv.geometry, {&conv.x, &conv.residual, &conv.out});
}

// Output rows come in slices, the unit that threads and bands share: Winograd's tiles are two rows
// high, and must not depend on where a share begins.
int64_t rows_per_slice(const Conv& conv) {
  return conv.layer.header.layout == PackedLayout::winograd ? 2 : 1;
}

int64_t slices_per_image(const Conv& conv) {
  const int64_t rows = rows_per_slice(conv);
  return ceil_div(conv.geometry.out.h, rows);
}

// Splitting the rows makes every thread read all weights, splitting the channels makes every thread
// read the whole input: takes the cheaper, counting what a thread waits for the slowest one.
class Partition {
 public:
  Partition(const Microkernels& kernels, const Conv& conv, int64_t threads)
      : slices_(conv.geometry.batch * slices_per_image(conv)),
        panels_(panel_count(kernels, conv.layer)) {
    const ConvGeometry& g = conv.geometry;
    const double flops = g.flops();
    const double weight_bytes = 4.0 * static_cast<double>(conv.layer.header.payload_floats());
    const double input_bytes =
        static_cast<double>(conv.x.element_bytes() * g.batch * g.in_channels * g.in.h * g.in.w);
    const int64_t slice_parts = std::min(threads, slices_);
    const int64_t panel_parts = std::min(threads, panels_);
    by_panels_ = cost(flops, panels_, panel_parts, input_bytes) <
                 cost(flops, slices_, slice_parts, weight_bytes);
    parts_ = by_panels_ ? panel_parts : slice_parts;
  }

  int64_t parts() const { return parts_; }
  bool by_panels() const { return by_panels_; }
  // Of the whole batch.
  int64_t slices() const { return slices_; }
  int64_t panels() const { return panels_; }

 private:
  // Time of the slowest thread in units of one FLOP: a byte from the shared cache costs about as
  // much as ten.
  static double cost(double flops, int64_t units, int64_t parts, double bytes_per_thread) {
    const double slowest = static_cast<double>(ceil_div(units, parts)) / static_cast<double>(units);
    return flops * slowest + 10.0 * bytes_per_thread;
  }

  int64_t slices_;
  int64_t panels_;
  bool by_panels_;
  int64_t parts_;
};

// Runs one thread's share in bands that stay in its level-2 cache.
class BandRunner {
 public:
  BandRunner(const Microkernels& kernels, const Conv& conv, Range panels)
      : kernels_(kernels),
        conv_(conv),
        panels_(panels),
        channels_(panel_channels(kernels, conv.layer, panels)),
        direct_input_(conv.x.is_band_for(conv.geometry.kernel.w) && !conv.geometry.padding.any()),
        on_tiles_(prefers_tiles(kernels, conv.layer, conv.geometry.out.w)),
        stored_input_(on_tiles_ && multiplies_bfloat16(kernels) && conv.x.is_bfloat16_nhwc()),
        stored_output_(on_tiles_ && multiplies_bfloat16(kernels) && conv.out.is_bfloat16_nhwc() &&
                       (conv.residual.data == nullptr || conv.residual.is_bfloat16_nhwc())),
        direct_output_(stored_output_ || conv.out.type == StorageType::float32),
        direct_residual_(stored_output_ || conv.residual.data == nullptr ||
                         conv.residual.is_float32_nhwc()),
        fetches_output_(direct_output_ && conv.plain.data == nullptr &&
                        conv.layer.header.layout != PackedLayout::winograd &&
                        panels.size() == panel_count(kernels, conv.layer) &&
                        weight_bytes(conv.layer) <= level2_cache_bytes() / 4),
        loaded_stride_(scratch_pixel_stride(conv.layer)),
        slices_alone_(slices_in_cache(Prefetch::no)),
        slices_at_once_(slices_in_cache(Prefetch::yes)),
        images_together_(images_together()) {}

  // Whether each panel of weights is used once.
  bool uses_panels_once(Range slices) const {
    if (first_band(slices).size() < slices.size()) return false;
    return conv_.layer.header.layout != PackedLayout::winograd ||
           conv_.geometry.out.h <= chunk_rows();
  }

  // Whether nothing has to be copied before it is convolved.
  bool reads_in_place() const { return direct_input_; }

  // About how many bands it takes.
  int64_t bands(int64_t slices) const { return slices / slices_at_once_; }

  // Which of some slices to do first: a band, or whole images that are taken together.
  Range first_of(Range slices) const {
    const int64_t images = images_first_of(slices);
    if (images < 2) return first_band(slices);
    return {slices.begin, slices.begin + images * slices_per_image(conv_)};
  }

  // What first_of() has said, and what comes after it.
  void run(Range slices, Range left) const {
    const int64_t n = slices.begin / slices_per_image(conv_);
    const int64_t images = images_first_of(slices);
    if (images >= 2) return run_images({n, n + images});
    run_band(place(slices), place(left.size() > 0 ? first_band(left) : left));
  }

 private:
  // Some rows of an image's output.
  struct Place {
    int64_t n, row, rows;
  };

  // Whether there is a next band, whose rows are fetched.
  enum class Prefetch { no, yes };

  Place place(Range slices) const {
    const int64_t per_image = slices_per_image(conv_);
    const int64_t row = slices.begin % per_image * rows_per_slice(conv_);
    return {slices.begin / per_image, row,
            std::min(slices.size() * rows_per_slice(conv_), conv_.geometry.out.h - row)};
  }

  // Bands of an image are of equal height: its last one must not be a narrow remainder.
  Range first_band(Range slices) const {
    const int64_t per_image = slices_per_image(conv_);
    const int64_t left = std::min(per_image - slices.begin % per_image, slices.size());
    if (left == slices.size() && left <= slices_alone_) return slices;
    const int64_t bands = ceil_div(left, slices_at_once_);
    return {slices.begin, slices.begin + ceil_div(left, bands)};
  }

  int64_t slices_in_cache(Prefetch prefetch) const {
    return std::max<int64_t>(1, rows_in_cache(prefetch) / rows_per_slice(conv_));
  }

  int64_t rows_in_cache(Prefetch prefetch) const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t input_bytes = stored_input_ ? sizeof(Bfloat16) : sizeof(float);
    const int64_t output_bytes = stored_output_ ? sizeof(Bfloat16) : sizeof(float);
    const int64_t output_row = g.out.w * g.out_channels * output_bytes;
    int64_t bytes_per_row = g.stride.h * g.padded_width() * g.in_channels * input_bytes;
    if (prefetch == Prefetch::yes && !on_tiles_) bytes_per_row *= 2;
    if (!direct_output_) bytes_per_row += output_row;
    if (fetches_output_) bytes_per_row += 2 * output_row;
    if (fetches_residual()) bytes_per_row += 2 * output_row;
    if (!direct_residual_) bytes_per_row += output_row;
    int64_t rows = level2_cache_bytes() / 2 / bytes_per_row;
    if (on_tiles_) rows = std::min(rows, split_rows_in_cache(kernels_, conv_.layer, g.out.w));
    return rows;
  }

  int64_t chunk_rows() const {
    return winograd_rows_in_cache(kernels_, conv_.layer, conv_.geometry.out.w);
  }

  // 0 or 1 where some slices begin with a band.
  int64_t images_first_of(Range slices) const {
    if (slices.begin % slices_per_image(conv_) != 0) return 0;
    return std::min(images_together_, slices.size() / slices_per_image(conv_));
  }

  // Images that are taken at once, so that the weights are read less often.
  int64_t images_together() const {
    if (!direct_output_ || !direct_residual_ || on_tiles_) return 1;
    const PackedHeader& h = conv_.layer.header;
    if (h.layout == PackedLayout::winograd) return chunk_rows() / (2 * slices_per_image(conv_));
    if (h.layout != PackedLayout::igemm || h.groups > 1) return 1;
    const int64_t weights =
        weight_bytes(conv_.layer) * panels_.size() / panel_count(kernels_, conv_.layer);
    const ConvGeometry& g = conv_.geometry;
    const int64_t image =
        g.input_rows(g.out.h) * g.padded_width() * g.in_channels * int64_t{sizeof(float)};
    return weights > level2_cache_bytes() && 2 * image <= level2_cache_bytes() ? 2 : 1;
  }

  void run_images(Range images) const {
    std::vector<ConvBand> bands;
    for (int64_t n = images.begin; n < images.end; ++n) {
      ConvBand band;
      band.rows = conv_.geometry.out.h;
      band.pixels = conv_.geometry.out.w;
      band.input = input_band(n, 0, band.rows, n - images.begin, images.size());
      if (conv_.residual.data != nullptr) band.residual = direct_band(conv_.residual, n, 0);
      band.output = direct_band(conv_.out, n, 0);
      bands.push_back(band);
    }
    if (conv_.layer.header.layout == PackedLayout::winograd) {
      return winograd_bands(kernels_, conv_.layer, conv_.plain, bands, panels_);
    }
    conv_bands(kernels_, conv_.layer, bands, panels_);
  }

  // `next` is what comes after it, perhaps no rows.
  void run_band(const Place& here, const Place& next) const {
    const auto [n, h, rows] = here;
    ConvBand band;
    band.rows = rows;
    band.pixels = conv_.geometry.out.w;
    if (stored_input_) {
      band.input16 = bfloat16_rows(conv_.x, conv_.geometry, n, h, rows, thread_scratch().input);
    } else {
      band.input = input_band(n, h, rows);
    }
    if (stored_output_) {
      band.output16 = direct_band16(conv_.out, n, h);
      if (conv_.residual.data != nullptr) band.residual16 = direct_band16(conv_.residual, n, h);
    } else {
      if (conv_.residual.data != nullptr) band.residual = residual_band(n, h, rows);
      band.output = direct_output_ ? direct_band(conv_.out, n, h) : output_scratch(rows);
    }
    ConvLayer layer = conv_.layer;
    if (conv_.plain.data == nullptr) {
      fetch(next, layer.upcoming);
      conv_rows(kernels_, layer, band, panels_);
    } else if (layer.header.layout == PackedLayout::winograd) {
      winograd_rows(kernels_, layer, conv_.plain, band, panels_);
    } else {
      layer.plain = &conv_.plain;
      conv_rows(kernels_, layer, band, panels_);
    }
    if (!direct_output_) {
      store_band(kernels_, band.output, conv_.out, n, h, rows, channels_.begin, channels_.end);
    }
  }

  bool fetches_residual() const {
    return fetches_output_ && direct_residual_ && conv_.residual.data != nullptr;
  }

  // What a band reads and writes.
  void fetch(const Place& band, Upcoming& upcoming) const {
    if (band.rows == 0) return;
    const int64_t end = band.row + band.rows;
    if (fetches_residual()) upcoming.add_rows(conv_.residual, band.n, band.row, end);
    if (fetches_output_) upcoming.add_rows(conv_.out, band.n, band.row, end);
    const ConvGeometry& g = conv_.geometry;
    const int64_t row = std::max<int64_t>(0, band.row * g.stride.h - g.padding.top);
    upcoming.add_rows(conv_.x, band.n, row, row + g.input_rows(band.rows));
  }

  // `place` of `places` of the scratch memory, where it has to be loaded.
  Band input_band(int64_t n, int64_t h, int64_t rows, int64_t place = 0, int64_t places = 1) const {
    const ConvGeometry& g = conv_.geometry;
    if (direct_input_) return direct_band(conv_.x, n, h * g.stride.h);
    const PaddedRows what = padded_rows(g, n, h, rows);
    const int64_t floats = what.rows * g.padded_width() * loaded_stride_;
    float* target = thread_scratch().input.floats(places * floats) + place * floats;
    return load_band(kernels_, conv_.x, what, target, loaded_stride_);
  }

  Band residual_band(int64_t n, int64_t h, int64_t rows) const {
    if (direct_residual_) return direct_band(conv_.residual, n, h);
    const PaddedRows what{n, h, rows, 0, 0};
    const int64_t floats = rows * conv_.residual.width * conv_.residual.channels;
    return load_band(kernels_, conv_.residual, what, thread_scratch().residual.floats(floats),
                     conv_.residual.channels);
  }

  Band output_scratch(int64_t rows) const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t row_stride = g.out.w * g.out_channels;
    return {thread_scratch().output.floats(rows * row_stride), row_stride, g.out_channels};
  }

  const Microkernels& kernels_;
  const Conv& conv_;
  const Range panels_;
  const Range channels_;
  const bool direct_input_;
  const bool on_tiles_;
  // Tiles read and write bfloat16 values as they are stored.
  const bool stored_input_, stored_output_;
  const bool direct_output_;
  const bool direct_residual_;
  // The weights leave the cache room, and tiles time, for the lines that the next band writes.
  const bool fetches_output_;
  const int64_t loaded_stride_;  // floats between the pixels of an input that is not direct
  // Of a band after which none is fetched, and of one after which one is.
  const int64_t slices_alone_, slices_at_once_;
  const int64_t images_together_;
};

// One thread's bands of a convolution.
class Bands {
 public:
  // `slices` about as many as there are to do.
  Bands(const Microkernels& kernels, const Conv& conv, Range panels, int64_t slices)
      : conv_(conv), runner_(kernels, conv_, panels) {
    conv_.layer = arranged(kernels, conv_.layer, panels);
    kept_ = kept_panels(kernels, conv_.layer, conv_.geometry.out.w, runner_.bands(slices),
                        thread_scratch().kept_panels[0]);
    if (kept_.has_value()) conv_.layer.split_panels = &*kept_;
  }
  Bands(const Bands&) = delete;
  Bands& operator=(const Bands&) = delete;

  Range first_of(Range slices) const { return runner_.first_of(slices); }
  void run(Range slices, Range left) const { runner_.run(slices, left); }
  void run_all(Range slices) const {
    while (slices.size() > 0) {
      const Range first = first_of(slices);
      slices.begin = first.end;
      run(first, slices);
    }
  }

 private:
  Conv conv_;
  const BandRunner runner_;
  std::optional<SplitPanels> kept_;
};

void share_slices(const Microkernels& kernels, const Conv& conv, const Partition& partition) {
  const int64_t parts = partition.parts();
  Shares shares(partition.slices(), parts, prefers_tiles(kernels, conv.layer, conv.geometry.out.w));
  parallel_parts(parts, [&](int64_t i) {
    Conv part = conv;
    part.layer.first_panel = partition.panels() * i / parts;
    const Bands bands(kernels, part, {0, partition.panels()}, ceil_div(partition.slices(), parts));
    shares.run(
        i, [&](Range slices) { return bands.first_of(slices); },
        [&](Range slices, Range left) { bands.run(slices, left); });
  });
}

// Each thread goes through all rows. Those that have to be loaded are loaded once.
void share_panels(const Microkernels& kernels, const Conv& conv, const Partition& partition) {
  const int64_t parts = partition.parts();
  const Range slices{0, partition.slices()};
  const bool stays = prefers_tiles(kernels, conv.layer, conv.geometry.out.w) ||
                     !BandRunner(kernels, conv, {0, partition.panels()}).reads_in_place();
  Shares shares(partition.panels(), parts, stays);
  parallel_parts(parts, [&](int64_t i) {
    shares.run(
        i,
        [&](Range panels) {
          const int64_t count = stays ? panels.size() : ceil_div(panels.size(), 2);
          return Range{panels.begin, panels.begin + count};
        },
        [&](Range panels, Range left) {
          Conv part = conv;
          if (left.size() > 0) part.layer.next_panel = left.begin;
          Bands(kernels, part, panels, slices.size()).run_all(slices);
        });
  });
}

// Whether each panel is used once, by one thread: then it need not be kept.
bool packs_by_panel(const Microkernels& kernels, const Conv& conv, const Partition& partition) {
  return partition.by_panels() && conv.layer.header.layout != PackedLayout::lanes &&
         BandRunner(kernels, conv, even_range(partition.panels(), partition.parts(), 0))
             .uses_panels_once({0, partition.slices()});
}

}  // namespace

void set_packed(const Microkernels& kernels, const PlainWeight& weight, float* payload,
                ConvLayer& layer, std::optional<PackOnUse>& packing) {
  layer.weights = payload;
  if (layer.header.layout == PackedLayout::lanes) {
    pack_payload(kernels, layer.header, weight, payload);
  } else {
    layer.packing = &packing.emplace(kernels, layer.header, weight, payload);
  }
}

const char* kernel_name(const Microkernels& kernels, Conv conv) {
  prepare(conv);
  if (prefers_pixel_lanes(conv)) return "pixel lanes";
  if (prefers_tiles(kernels, conv.layer, conv.geometry.out.w)) return "matrix tiles";
  switch (conv.layer.header.layout) {
    case PackedLayout::winograd:
      return batches_winograd(kernels, conv.layer, conv.geometry.batch, conv.geometry.out)
                 ? "Winograd on matrix tiles"
                 : "Winograd";
    case PackedLayout::lanes:
      return conv.layer.header.group_in_channels >= 4 ? "grouped lanes" : "channel lanes";
    default:
      return "register tiles";
  }
}

void run_conv(const Microkernels& kernels, Conv conv) {
  if (conv.geometry.batch == 0) return;
  prepare(conv);
  std::optional<PooledFloats> packed;
  std::optional<PackOnUse> packing;
  widen_weight(kernels, conv.layer, conv.plain, conv.geometry.out.w, packed);
  if (prefers_pixel_lanes(conv)) return run_pixel_lanes(kernels, conv);
  const Partition partition(kernels, conv, thread_count());
  const bool batches =
      batches_winograd(kernels, conv.layer, conv.geometry.batch, conv.geometry.out);
  if (conv.plain.data != nullptr && (batches || !packs_by_panel(kernels, conv, partition))) {
    packed.emplace(conv.layer.header.payload_floats());
    set_packed(kernels, conv.plain, packed->data(), conv.layer, packing);
    conv.plain = {};
  }
  if (batches) return run_winograd_batches(kernels, conv);
  if (partition.by_panels()) {
    share_panels(kernels, conv, partition);
  } else {
    share_slices(kernels, conv, partition);
  }
}

}  // namespace fastres::cpu

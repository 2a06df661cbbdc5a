#include "conv.h"

#include <algorithm>
#include <optional>

#include "../runtime/buffer_pool.h"
#include "../runtime/scratch.h"
#include "../runtime/shares.h"
#include "bfloat16_weight.h"
#include "conv_bands.h"
#include "conv_rows.h"
#include "conv_winograd.h"
#include "panels.h"
#include "pixel_lanes.h"
#include "split_rows.h"
#include "weights.h"

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

#include "conv_bands.h"

#include <algorithm>
#include <vector>

#include "../runtime/cache.h"
#include "../runtime/scratch.h"
#include "conv_rows.h"
#include "panels.h"
#include "split_rows.h"
#include "winograd.h"

namespace fastres::cpu {
namespace {

int64_t rows_per_slice(const Conv& conv) {
  return conv.layer.header.layout == PackedLayout::winograd ? 2 : 1;
}

}  // namespace

int64_t slices_per_image(const Conv& conv) {
  return ceil_div(conv.geometry.out.h, rows_per_slice(conv));
}

BandRunner::BandRunner(const Microkernels& kernels, const Conv& conv, Range panels)
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

bool BandRunner::uses_panels_once(Range slices) const {
  if (next_band(slices).size() < slices.size()) return false;
  return conv_.layer.header.layout != PackedLayout::winograd ||
         conv_.geometry.out.h <= chunk_rows();
}

Range BandRunner::first_of(Range slices) const {
  const int64_t images = images_first_of(slices);
  if (images < 2) return next_band(slices);
  return {slices.begin, slices.begin + images * slices_per_image(conv_)};
}

void BandRunner::run(Range slices, Range left) const {
  const int64_t n = slices.begin / slices_per_image(conv_);
  const int64_t images = images_first_of(slices);
  if (images >= 2) return run_images({n, n + images});
  run_band(place(slices), place(left.size() > 0 ? next_band(left) : left));
}

BandRunner::Place BandRunner::place(Range slices) const {
  const int64_t per_image = slices_per_image(conv_);
  const int64_t row = slices.begin % per_image * rows_per_slice(conv_);
  return {slices.begin / per_image, row,
          std::min(slices.size() * rows_per_slice(conv_), conv_.geometry.out.h - row)};
}

Range BandRunner::next_band(Range slices) const {
  const int64_t per_image = slices_per_image(conv_);
  const bool alone = slices.size() <= per_image - slices.begin % per_image;
  if (alone && slices.size() <= slices_alone_) return slices;
  return first_band(slices, per_image, slices_at_once_);
}

int64_t BandRunner::slices_in_cache(Prefetch prefetch) const {
  return std::max<int64_t>(1, rows_in_cache(prefetch) / rows_per_slice(conv_));
}

int64_t BandRunner::rows_in_cache(Prefetch prefetch) const {
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

int64_t BandRunner::chunk_rows() const {
  return winograd_rows_in_cache(kernels_, conv_.layer, conv_.geometry.out.w);
}

int64_t BandRunner::images_first_of(Range slices) const {
  if (slices.begin % slices_per_image(conv_) != 0) return 0;
  return std::min(images_together_, slices.size() / slices_per_image(conv_));
}

int64_t BandRunner::images_together() const {
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

void BandRunner::run_images(Range images) const {
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

void BandRunner::run_band(const Place& here, const Place& next) const {
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

bool BandRunner::fetches_residual() const {
  return fetches_output_ && direct_residual_ && conv_.residual.data != nullptr;
}

void BandRunner::fetch(const Place& band, Upcoming& upcoming) const {
  if (band.rows == 0) return;
  const int64_t end = band.row + band.rows;
  if (fetches_residual()) upcoming.add_rows(conv_.residual, band.n, band.row, end);
  if (fetches_output_) upcoming.add_rows(conv_.out, band.n, band.row, end);
  const ConvGeometry& g = conv_.geometry;
  const int64_t row = std::max<int64_t>(0, band.row * g.stride.h - g.padding.top);
  upcoming.add_rows(conv_.x, band.n, row, row + g.input_rows(band.rows));
}

Band BandRunner::input_band(int64_t n, int64_t h, int64_t rows, int64_t place,
                            int64_t places) const {
  const ConvGeometry& g = conv_.geometry;
  if (direct_input_) return direct_band(conv_.x, n, h * g.stride.h);
  const PaddedRows what = padded_rows(g, n, h, rows);
  const int64_t floats = what.rows * g.padded_width() * loaded_stride_;
  float* target = thread_scratch().input.floats(places * floats) + place * floats;
  return load_band(kernels_, conv_.x, what, target, loaded_stride_);
}

Band BandRunner::residual_band(int64_t n, int64_t h, int64_t rows) const {
  if (direct_residual_) return direct_band(conv_.residual, n, h);
  const PaddedRows what{n, h, rows, 0, 0};
  const int64_t floats = rows * conv_.residual.width * conv_.residual.channels;
  return load_band(kernels_, conv_.residual, what, thread_scratch().residual.floats(floats),
                   conv_.residual.channels);
}

Band BandRunner::output_scratch(int64_t rows) const {
  const ConvGeometry& g = conv_.geometry;
  const int64_t row_stride = g.out.w * g.out_channels;
  return {thread_scratch().output.floats(rows * row_stride), row_stride, g.out_channels};
}

}  // namespace fastres::cpu

#include "conv_layer.h"

namespace fastres::cpu {
namespace {

template <class T>
void set_strides(ConvTile& t, const PixelRows<T>& residual, const PixelRows<T>& output) {
  t.residual_row_stride = residual.row_stride;
  t.residual_pixel_stride = residual.pixel_stride;
  t.output_row_stride = output.row_stride;
  t.output_pixel_stride = output.pixel_stride;
}

}  // namespace

void Upcoming::add_rows(const Image& image, int64_t n, int64_t begin, int64_t end) {
  end = std::min(end, image.height);
  if (!image.channels_adjacent() || begin >= end) return;
  if (image.stride_h > 2 * image.width * image.channels) return;
  const int64_t bytes = (end - begin) * image.stride_h * image.element_bytes();
  add({reinterpret_cast<const float*>(image.at(n, begin, 0)), bytes / int64_t{sizeof(float)}});
}

FetchList part_of(FetchList list, int64_t parts, int64_t i, int64_t count) {
  if (count == parts) return list;
  for (FloatSpan& span : list.spans) {
    if (span.count == 0) continue;
    const int64_t begin = even_range(span.count, parts, i).begin;
    span = {span.data + begin, even_range(span.count, parts, i + count - 1).end - begin};
  }
  return list;
}

FetchList Upcoming::part(int64_t parts, int64_t i, int64_t count) const {
  return part_of(list_, parts, i, count);
}

int64_t scratch_pixel_stride(const ConvLayer& layer) {
  const PackedHeader& h = layer.header;
  const int64_t channels = h.groups * h.group_in_channels;
  return h.groups == 1 ? channels : band_pixel_stride(channels);
}

void set_outputs(ConvTile& t, const ConvLayer& layer, const ConvBand& band) {
  t.shift = layer.shift;
  t.residual = band.residual.data;
  t.output = band.output.data;
  t.residual16 = band.residual16.data;
  t.output16 = band.output16.data;
  if (t.output16 != nullptr) {
    set_strides(t, band.residual16, band.output16);
  } else {
    set_strides(t, band.residual, band.output);
  }
  t.rows = band.rows;
  t.pixels = band.pixels;
  t.out_channels = layer.header.out_channels;
  t.act = layer.act;
  t.act_slope = layer.act_slope;
}

void select_outputs(ConvTile& t, Range channels) {
  t.shift += channels.begin;
  if (t.residual != nullptr) t.residual += channels.begin;
  if (t.output != nullptr) t.output += channels.begin;
  if (t.residual16 != nullptr) t.residual16 += channels.begin;
  if (t.output16 != nullptr) t.output16 += channels.begin;
  t.out_channels = channels.size();
}

ConvTile tile_of(const ConvLayer& layer, const ConvBand& band) {
  const PackedHeader& h = layer.header;
  ConvTile t{};
  t.input = band.input.data;
  t.input_row_stride = band.input.row_stride * layer.stride.h;
  t.input_pixel_stride = band.input.pixel_stride * layer.stride.w;
  t.tap_rows = h.kernel_h;
  t.tap_cols = h.kernel_w;
  t.tap_row_stride = band.input.row_stride * layer.dilation.h;
  t.tap_col_stride = band.input.pixel_stride * layer.dilation.w;
  t.channels = h.group_in_channels;
  if (h.layout == PackedLayout::igemm && t.tap_col_stride == t.channels) {
    // The taps of a kernel row are adjacent in memory: one run instead of several short ones.
    t.channels *= t.tap_cols;
    t.tap_cols = 1;
  }
  t.weights = layer.weights;
  t.weight_block_stride = h.block_stride();
  set_outputs(t, layer, band);
  return t;
}

}  // namespace fastres::cpu

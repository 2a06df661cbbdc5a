// conv_max_pool and live_conv_max_pool on the CPU: a network's stem. Rows of the convolution's
// output are pooled while they are in the level-2 cache, and never leave it.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "conv_arguments.h"
#include "convolution/bfloat16_weight.h"
#include "convolution/conv_rows.h"
#include "convolution/panels.h"
#include "convolution/plain_tensor.h"
#include "convolution/pooling.h"
#include "convolution/split_rows.h"
#include "convolution/weights.h"
#include "runtime/allocate.h"
#include "runtime/buffer_pool.h"
#include "runtime/cache.h"
#include "runtime/scratch.h"
#include "runtime/shares.h"

namespace fastres::cpu {
namespace {

// One thread's walk down rows of the output.
class PooledRows {
 public:
  // A walk of about so many output rows; `start` is where, between 0 and 1, to begin with panels.
  PooledRows(const Microkernels& kernels, const Conv& conv, const PoolWindow& window, int64_t rows,
             double start)
      : kernels_(kernels),
        conv_(conv),
        window_(window),
        panels_{0, panel_count(kernels, conv.layer)},
        row_floats_(conv.geometry.out.w * conv.geometry.out_channels),
        layer_(arranged(kernels, conv.layer, panels_)),
        kept_(kept_panels(kernels, layer_, conv.geometry.out.w, rows / rows_at_once(),
                          thread_scratch().kept_panels[0])) {
    if (kept_.has_value()) layer_.split_panels = &*kept_;
    layer_.first_panel = static_cast<int64_t>(start * static_cast<double>(panels_.size()));
  }
  PooledRows(const PooledRows&) = delete;
  PooledRows& operator=(const PooledRows&) = delete;

  // Which of some output rows, of all images, to do first.
  Range first_of(Range rows) const { return first_band(rows, conv_.out.height, rows_at_once()); }

  void run(Range rows) {
    const int64_t n = rows.begin / conv_.out.height;
    const int64_t first = rows.begin % conv_.out.height;
    if (rows.begin != next_row_ || first == 0) held_ = {0, 0};
    held_ = advance(n, {first, first + rows.size()}, held_);
    next_row_ = rows.end;
    for (int64_t h = first; h < first + rows.size(); ++h) pool(n, h, held_.begin);
  }

 private:
  int64_t height() const { return conv_.geometry.out.h; }
  int64_t conv_rows_for(int64_t rows) const {
    return (rows - 1) * window_.stride.h + window_.kernel.h;
  }

  // With the input's rows they take a quarter of the level-2 cache.
  int64_t rows_at_once() const {
    const ConvGeometry& g = conv_.geometry;
    const int64_t floats =
        window_.stride.h * (row_floats_ + g.stride.h * g.padded_width() * g.in_channels);
    const int64_t rows = level2_cache_bytes() / 4 / (floats * int64_t{sizeof(float)});
    return std::clamp<int64_t>(rows, 1, conv_.out.height);
  }

  float* buffer() const {
    return thread_scratch().inner1.floats(conv_rows_for(rows_at_once()) * row_floats_);
  }

  // Moves rows that both bands read to the top, and computes the others.
  Range advance(int64_t n, Range output, Range held) const {
    const Range rows{window_.input_rows(output.begin, height()).begin,
                     window_.input_rows(output.end - 1, height()).end};
    const int64_t begin = std::clamp(held.end, rows.begin, rows.end);
    if (begin > rows.begin) {
      std::memmove(buffer(), buffer() + (rows.begin - held.begin) * row_floats_,
                   static_cast<size_t>((begin - rows.begin) * row_floats_) * sizeof(float));
    }
    if (begin < rows.end) convolve(n, {begin, rows.end}, begin - rows.begin);
    return rows;
  }

  // To the buffer from its row `at` on.
  void convolve(int64_t n, Range rows, int64_t at) const {
    const ConvGeometry& g = conv_.geometry;
    ConvBand band;
    band.rows = rows.size();
    band.pixels = g.out.w;
    const PaddedRows what = padded_rows(g, n, rows.begin, rows.size());
    band.input = load_band(
        kernels_, conv_.x, what,
        thread_scratch().input.floats(what.rows * g.padded_width() * g.in_channels), g.in_channels);
    band.output = {buffer() + at * row_floats_, row_floats_, g.out_channels};
    conv_rows(kernels_, layer_, band, panels_);
  }

  void pool(int64_t n, int64_t h, int64_t first) const {
    const Range rows = window_.input_rows(h, height());
    const Band input{buffer() + (rows.begin - first) * row_floats_, row_floats_,
                     conv_.geometry.out_channels};
    pool_row(kernels_, window_, input, rows.size(), conv_.geometry.out.w, conv_.out, n, h);
  }

  const Microkernels& kernels_;
  const Conv& conv_;
  const PoolWindow& window_;
  const Range panels_;
  const int64_t row_floats_;
  ConvLayer layer_;
  std::optional<SplitPanels> kept_;
  int64_t next_row_ = -1;  // after the last band
  Range held_{0, 0};       // rows of the convolution that are in the buffer
};

void run(const Microkernels& kernels, Conv conv, const PoolWindow& window) {
  conv.layer.outputs = shared_outputs(conv.layer.header, conv.geometry.batch, conv.geometry.out);
  std::optional<PooledFloats> packed;
  std::optional<PackOnUse> packing;
  widen_weight(kernels, conv.layer, conv.plain, conv.geometry.out.w, packed);
  if (conv.plain.data != nullptr) {
    packed.emplace(conv.layer.header.payload_floats());
    set_packed(kernels, conv.plain, packed->data(), conv.layer, packing);
  }
  const int64_t rows = conv.out.batch * conv.out.height;
  const int64_t parts = std::min(thread_count(), rows);
  Shares shares(rows, parts, prefers_tiles(kernels, conv.layer, conv.geometry.out.w));
  parallel_parts(parts, [&](int64_t i) {
    PooledRows pooled(kernels, conv, window, ceil_div(rows, parts),
                      static_cast<double>(i) / static_cast<double>(parts));
    shares.run(
        i, [&](Range share) { return pooled.first_of(share); },
        [&](Range band, Range) { pooled.run(band); });
  });
}

struct PoolArguments {
  const std::vector<int64_t>& size;
  const std::vector<int64_t>& stride;
  const std::vector<int64_t>& padding;
};

Tensor convolve_and_pool(const ConvArguments& arguments, const ConvWeight& weight,
                         const PoolArguments& pool, const char* op) {
  Tensor dense_shift = arguments.shift;
  Conv conv = checked_conv(arguments, weight, op, dense_shift);
  const ConvGeometry& g = conv.geometry;
  const PoolWindow window =
      pool_window(pool.size, pool.stride, pool.padding, g.out, op,
                  {"the convolution's output", "pool_size", "pool_stride", "pool_padding"});
  const Tensor& x = arguments.x;
  Tensor out = empty_nhwc(g.batch, g.out_channels, pooled_size(window, g.out), x.scalar_type(), x);
  const Image pooled = image_of(out);
  const Microkernels& kernels = kernels_for(conv.x.type, conv.layer);
  // Of fewer rows than threads, which can share the convolution in other ways, or of Winograd's
  // tiles, which are two rows high, the convolution comes first.
  const bool apart = weight.header.layout == PackedLayout::winograd ||
                     pooled.batch * pooled.height < thread_count();
  if (g.batch == 0) return out;
  if (!apart) {
    conv.out = pooled;
    run(kernels, conv, window);
  } else {
    Tensor y = empty_nhwc(g.batch, g.out_channels, g.out, x.scalar_type(), x);
    conv.out = image_of(y);
    run_conv(kernels, conv);
    run_max_pool(kernels, conv.out, pooled, window);
  }
  return out;
}

Tensor conv_max_pool(const Tensor& x, const Tensor& packed, const Tensor& shift,
                     const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                     int64_t groups, const std::string& act, double act_slope,
                     const std::vector<int64_t>& pool_size, const std::vector<int64_t>& pool_stride,
                     const std::vector<int64_t>& pool_padding) {
  constexpr const char* kOp = "conv_max_pool";
  check_cpu(packed, kOp, "packed");
  const PackedHeader header = packed_header(packed, kOp, "packed");
  return convolve_and_pool(
      {x, shift, std::nullopt, stride, padding, dilation, groups, act, act_slope},
      {header,
       positive_pair(kernel_size, kOp, "kernel_size"),
       packed_payload(packed.const_data_ptr()),
       {},
       "packed"},
      {pool_size, pool_stride, pool_padding}, kOp);
}

Tensor live_conv_max_pool(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
                          const Tensor& shift, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                          int64_t groups, const std::string& act, double act_slope,
                          const std::vector<int64_t>& pool_size,
                          const std::vector<int64_t>& pool_stride,
                          const std::vector<int64_t>& pool_padding) {
  constexpr const char* kOp = "live_conv_max_pool";
  check_cpu(weight, kOp, "weight");
  const CheckedWeight source = checked_weight(weight, scale, groups, "direct", kOp);
  return convolve_and_pool(
      {x, shift, std::nullopt, stride, padding, dilation, groups, act, act_slope},
      {source.header,
       {source.header.kernel_h, source.header.kernel_w},
       nullptr,
       source.plain,
       "weight"},
      {pool_size, pool_stride, pool_padding}, kOp);
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("conv_max_pool", TORCH_BOX(&fastres::cpu::conv_max_pool));
  m.impl("live_conv_max_pool", TORCH_BOX(&fastres::cpu::live_conv_max_pool));
}

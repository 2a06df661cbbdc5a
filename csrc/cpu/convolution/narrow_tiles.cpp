#include "narrow_tiles.h"

#include <algorithm>
#include <vector>

#include "../runtime/scratch.h"
#include "conv_rows.h"
#include "pack_on_use.h"
#include "plain_weight.h"

namespace fastres::cpu {
namespace {

// The packed weights of some blocks of narrow groups.
const float* narrow_weights(const Microkernels& kernels, const ConvLayer& layer, Range blocks) {
  const int64_t stride = layer.header.block_stride();
  if (layer.plain != nullptr) {
    float* packed = thread_scratch().weights.floats(blocks.size() * stride);
    pack_blocks(kernels, layer.header, *layer.plain, blocks, packed);
    return packed;
  }
  if (layer.packing != nullptr) layer.packing->prepare(blocks);
  return layer.weights + (blocks.begin - layer.first_block) * stride;
}

// Room for pixels in `memory`; vectors may read beyond the last one's channels.
Band room_for(Extent size, int64_t channels, std::vector<float>& memory) {
  memory.resize(static_cast<size_t>(size.h * size.w * channels + kChannelBlock));
  return {memory.data(), size.w * channels, channels};
}

// All channels as float32 values.
Band widened(const Microkernels& kernels, const Bfloat16Band& band, Extent size, int64_t channels,
             std::vector<float>& memory) {
  const Band wide = room_for(size, channels, memory);
  for (int64_t h = 0; h < size.h; ++h) {
    for (int64_t w = 0; w < size.w; ++w) {
      kernels.widen(band.data + h * band.row_stride + w * band.pixel_stride, StorageType::bfloat16,
                    wide.data + h * wide.row_stride + w * wide.pixel_stride, channels);
    }
  }
  return wide;
}

// Without tiles, which would multiply a group's infinities with the zeros of others.
void narrow_float_panels(ConvLayer layer, const ConvBand& band, Range panels) {
  layer.first_panel = 0;  // of all the layer's panels, of which these are some
  const Microkernels& kernels = selected_microkernels(StorageType::float32);
  const PackedHeader& h = layer.header;
  const int64_t channels = h.out_channels;
  const Extent out{band.rows, band.pixels};
  const Extent in{(out.h - 1) * layer.stride.h + (h.kernel_h - 1) * layer.dilation.h + 1,
                  (out.w - 1) * layer.stride.w + (h.kernel_w - 1) * layer.dilation.w + 1};
  std::vector<float> input, residual, output;
  ConvBand wide = band;
  wide.input16 = wide.residual16 = wide.output16 = {};
  if (band.input16.data != nullptr) {
    wide.input = widened(kernels, band.input16, in, channels, input);
  }
  if (band.output16.data != nullptr) {
    wide.output = room_for(out, channels, output);
    if (band.residual16.data != nullptr) {
      wide.residual = widened(kernels, band.residual16, out, channels, residual);
    }
  }
  conv_rows(kernels, layer, wide, panels);
  if (band.output16.data == nullptr) return;
  const Range mine{panels.begin * kChannelBlock, panels.end * kChannelBlock};
  for (int64_t row = 0; row < out.h; ++row) {
    for (int64_t pixel = 0; pixel < out.w; ++pixel) {
      const float* from = wide.output.data + row * wide.output.row_stride +
                          pixel * wide.output.pixel_stride + mine.begin;
      Bfloat16* to = band.output16.data + row * band.output16.row_stride +
                     pixel * band.output16.pixel_stride + mine.begin;
      kernels.narrow(from, StorageType::bfloat16, to, mine.size());
    }
  }
}

// `some` of the panels, whose input is loaded, two blocks at a time.
void multiply_pairs(const Microkernels& kernels, const ConvLayer& layer, const ConvTile& tile,
                    Range panels, Range some, SplitBand& split) {
  for (Range pair{some.begin, 0}; pair.begin < some.end; pair.begin = pair.end) {
    pair.end = std::min(some.end, pair.begin / 2 * 2 + 2);
    ConvTile t = tile;
    t.weights = narrow_weights(kernels, layer, pair);
    select_outputs(t, {pair.begin * kChannelBlock, pair.end * kChannelBlock});
    t.upcoming = layer.upcoming.part(panels.size(), pair.begin - panels.begin, pair.size());
    split.multiply({t, pair.begin, 0}, pair.begin, nullptr);
  }
}

}  // namespace

void narrow_tile_panels(const Microkernels& kernels, const ConvLayer& layer, const ConvBand& band,
                        Range panels) {
  constexpr int64_t kAtOnce = 8;
  ConvTile tile{};
  tile.weight_block_stride = layer.header.block_stride();
  set_outputs(tile, layer, band);
  for (int64_t first = panels.begin; first < panels.end;) {
    const Range some{first, std::min(panels.end, (first / kAtOnce + 1) * kAtOnce)};
    SplitBand split(kernels, layer, band, {some.begin / 2 * 2, (some.end + 1) / 2 * 2});
    split.load(band, {0, 1});
    if (split.finite()) {
      multiply_pairs(kernels, layer, tile, panels, some, split);
    } else {
      narrow_float_panels(layer, band, some);
    }
    for (int64_t panel = some.begin; layer.finished != nullptr && panel < some.end; ++panel) {
      (*layer.finished)(panel);
    }
    first = some.end;
  }
}

}  // namespace fastres::cpu

// Winograd's F(2x2, 3x3) for many images at a time: of training, and of inference on matrix tiles.
//
// With many channels the sixteen matrices of a weight, or of its gradient, are larger than the
// level-2 cache, and reading them again for every few rows costs more than the multiplications. So
// the tiles of some images are transformed first, and each position's product is computed at once:
// its matrix meets all of them while it is in the cache.

#pragma once

#include <algorithm>

#include "../runtime/buffer_pool.h"
#include "slices.h"
#include "weights.h"
#include "winograd.h"

namespace fastres::cpu {

// Whether the weight's sixteen matrices are too large for bands of rows, in training.
bool trains_in_winograd_batches(const WeightView& weight);

// Rows of outputs, an even number, that the buffers of `channels` channels together have room for:
// several images, or a part of one.
int64_t winograd_rows_at_once(Extent out, int64_t channels);

// Calls use(images) for ranges of nearly equal size, of images that are worked on at a time.
template <class Use>
void for_each_winograd_batch(int64_t images, Extent out, int64_t channels, const Use& use) {
  const int64_t image_rows = (out.h + 1) / 2 * 2;
  const int64_t at_once = std::max<int64_t>(1, winograd_rows_at_once(out, channels) / image_rows);
  const int64_t parts = ceil_div(images, at_once);
  for (int64_t i = 0; i < parts; ++i) use(even_range(images, parts, i));
}

// Rows of some images, in tiles, for threads to share; a row of what they load has `row_floats`.
Slices tile_slices(int64_t images, Extent out, int64_t row_floats,
                   int64_t fewest = Slices::kForThreads);

// Transformed values, [16][images][tile rows][tile columns][channels], each image's of its own.
class TileBuffer {
 public:
  // `out` is the size of the convolution's output.
  TileBuffer(int64_t images, Extent out, int64_t channels);

  const WinogradTiles& all() const { return tiles_; }
  WinogradTiles of(const Slices::Slice& slice) const;

 private:
  const int64_t image_rows_;  // of tiles
  WinogradTiles tiles_;
  const PooledFloats memory_;
};

// products = input times the layer's packed weights, on all threads.
void multiply_tiles(const Microkernels& kernels, const ConvLayer& layer, const WinogradTiles& input,
                    const WinogradTiles& products);

}  // namespace fastres::cpu

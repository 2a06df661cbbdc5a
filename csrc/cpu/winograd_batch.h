// Winograd's F(2x2, 3x3) for many images at a time: of training, and of inference on matrix tiles.
//
// With many channels the sixteen matrices of a weight, or of its gradient, are larger than the
// level-2 cache, and reading them again for every few rows costs more than the multiplications. So
// all tiles are transformed first, and each position's product is computed at once: its matrix
// meets all tiles while it is in the cache.

#pragma once

#include "prologue.h"
#include "winograd.h"

namespace fastres::cpu {

// Whether the weight's sixteen matrices are too large for bands of rows.
bool prefers_winograd_batches(const WeightView& weight);

// Images that are worked on at a time, of `channels` channels in all buffers together.
int64_t winograd_images_at_once(Extent out, int64_t channels);

// Rows of some images, in tiles, for threads to share; a row of what they load has `row_floats`.
Slices tile_slices(int64_t images, Extent out, int64_t row_floats);

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

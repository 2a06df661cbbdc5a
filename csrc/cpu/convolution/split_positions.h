// Where the planes of a band's input have its pixels; see split.h.
//
// Positions are pixels of the padded input, in planes of those that are a stride apart, row after
// row: what one tap reads for adjacent outputs is adjacent. Between rows there are positions that
// no output belongs to; they are multiplied all the same, so that a tile may cross rows.

#pragma once

#include <vector>

#include "../../geometry.h"
#include "../split.h"
#include "conv_layer.h"

namespace fastres::cpu {

// The kernel of a convolution, and what its taps are apart.
struct TapGrid {
  Extent kernel, stride, dilation;
};

// Of the padded input, along one axis, the positions that `outputs` read and that are `phase` after
// a multiple of the stride.
int64_t positions_read(int64_t outputs, int64_t taps, int64_t dilation, int64_t stride,
                       int64_t phase);

// The pairs of remainders by the stride that taps read.
int64_t phases_read(const TapGrid& taps);

class SplitPositions {
 public:
  SplitPositions(const TapGrid& taps, Extent outputs);

  // Of all phases, and one more than a tile may read beyond the last.
  int64_t count() const { return std::ssize(phases_) * phase_positions_ + kSplitPositions; }
  // From one row to the next.
  int64_t row() const { return row_positions_; }
  // Where the taps of the first output are.
  const std::vector<int64_t>& taps() const { return taps_; }

  // Splits the band's pixels, from the channel `first` on, to `to.planes`, whose other sizes are
  // set. Returns whether all of them have parts.
  bool split(const SplitKernels& kernels, const ConvBand& band, int64_t first,
             SplitPixels to) const;

 private:
  const TapGrid geometry_;
  const Extent outputs_;
  const int64_t row_positions_;
  const int64_t phase_positions_;
  std::vector<Extent> phases_;
  std::vector<int64_t> taps_;
};

}  // namespace fastres::cpu

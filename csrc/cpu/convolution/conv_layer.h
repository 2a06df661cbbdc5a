// A convolution apart from its data, and one band of that data.

#pragma once

#include <cstdint>
#include <functional>

#include "../../geometry.h"
#include "../../packed_weight.h"
#include "../microkernels.h"
#include "../runtime/parallel.h"
#include "image.h"

namespace fastres::cpu {

class PackOnUse;
struct PlainWeight;
class SplitPanels;

// A list that is made one span after the other, and shared out evenly.
class Upcoming {
 public:
  bool empty() const { return size_ == 0; }
  int size() const { return size_; }
  // Rows [begin, end) of an image; those outside the image, images that no band points into, and
  // rows of which most is skipped are not fetched. Lines are far apart in the order in which tiles
  // read and write them, too far for the processor to foresee.
  void add_rows(const Image& image, int64_t n, int64_t begin, int64_t end);
  // One place is left for weights; what finds none is not fetched.
  void add(FloatSpan span) {
    if (span.count > 0 && size_ < FetchList::kSpans - 1) list_.spans[size_++] = span;
  }
  // Of so many parts the next `count` from the i-th on.
  FetchList part(int64_t parts, int64_t i, int64_t count = 1) const;

 private:
  FetchList list_;
  int size_ = 0;
};

// The i-th of so many equal parts of each span, and those after it.
FetchList part_of(FetchList list, int64_t parts, int64_t i, int64_t count = 1);

// Everything about a convolution that is not its data.
struct ConvLayer {
  PackedHeader header;
  PackOnUse* packing = nullptr;  // prepares panels of `weights` before their use; null if they are
  const PlainWeight* plain = nullptr;  // in place of `weights`: each panel is used once; igemm only
  int64_t first_panel = 0;             // where this thread begins with the panels it is given
  int64_t next_panel = -1;             // whose weights come after those, or -1
  const float* weights = nullptr;      // packed, from block `first_block` on
  int64_t first_block = 0;
  const float* arranged = nullptr;      // by arranged(), null for not yet
  SplitPanels* split_panels = nullptr;  // keeps what the thread has split; null for nothing
  Upcoming upcoming;  // what will be read or written after this, fetched meanwhile
  // On matrix tiles, told of each panel while its outputs are in the cache; null for nobody.
  const std::function<void(int64_t panel)>* finished = nullptr;
  const float* shift = nullptr;
  Extent stride, dilation;
  Activation act = Activation::none;
  float act_slope = 0.0F;
  int64_t outputs = 0;  // pixels that bands share, where what each does to the weights counts
};

// Of the whole packed weight.
inline int64_t weight_bytes(const ConvLayer& layer) {
  return layer.header.payload_floats() * static_cast<int64_t>(sizeof(float));
}

// Floats between the pixels of the layer's input in scratch memory. Dense layers read a pixel's
// channels one after the other, and those of adjacent pixels as one run.
int64_t scratch_pixel_stride(const ConvLayer& layer);

struct ConvBand {
  // Starts at the padded input pixel of the first output pixel's first tap. For a kernel of several
  // columns of so few channels that tiles join them, its pixels are adjacent.
  Band input;
  Band residual;  // data is null for none; a 1x1's may be the output itself
  Band output;
  // In place of those above where they have data, on matrix tiles that multiply bfloat16 values;
  // the output and the residual together.
  Bfloat16Band input16, residual16, output16;
  int64_t rows = 0;
  int64_t pixels = 0;
};

// What a tile makes of the band, for all output channels; and for some of those.
void set_outputs(ConvTile& tile, const ConvLayer& layer, const ConvBand& band);
void select_outputs(ConvTile& tile, Range channels);

// What a tile reads of the band and makes of it, for all channels.
ConvTile tile_of(const ConvLayer& layer, const ConvBand& band);

}  // namespace fastres::cpu

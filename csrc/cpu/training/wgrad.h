// The gradient of a convolution's weight.

#pragma once

#include <vector>

#include "output_gradient.h"

namespace fastres::cpu {

// The activated input and the output's gradient where it is formed, of some images and rows.
struct WgradBands {
  Band input;  // starts at the first output pixel's first tap
  ptrdiff_t input_image_stride = 0;
  Band gradient;
  ptrdiff_t gradient_image_stride = 0;
  int64_t images = 1, rows = 0, pixels = 0;
  Upcoming upcoming;  // what will be read after these, fetched meanwhile on matrix tiles
};

// Sums of a weight's gradient, in the layout of its packed weight.
//
// A unit is a block of 16 output channels. Its section is the input channels that it meets: its
// group, or with narrow groups the block of the same numbers.
class WeightSums {
 public:
  WeightSums(const Kernels& kernels, const TrainingConv& conv);

  int64_t floats() const { return header_.payload_floats(); }

  // What is summed together: of all sections that the units are in these input channels.
  struct Piece {
    Range units;
    Range channels;  // within each section; all of them where there are several sections
  };
  Piece everything() const { return {{0, units_}, {0, section_in_}}; }
  // What threads can share: units, or on matrix tiles pairs of them or chunks of input channels.
  int64_t shares() const;
  // Pieces of these shares, each small enough for bands of many pixels to stay in the cache.
  std::vector<Piece> pieces(Range shares) const;
  Range input_channels(const Piece& piece) const;
  Range output_channels(const Piece& piece) const;

  // Whether a piece is multiplied on matrix tiles.
  bool prefers_tiles(const Piece& piece) const;
  bool on_tiles() const { return prefers_tiles(everything()); }

  // The bands hold those channels.
  void add(const WgradBands& bands, const Piece& piece, float* sums) const;

 private:
  std::vector<Piece> tile_pieces(Range shares) const;
  int64_t unit_floats() const { return header_.block_stride(); }
  WgradTile tile_of(const WgradBands& bands) const;
  void add_block(WgradTile tile, const Piece& piece) const;
  void add_taps(WgradTile tile, Range channels) const;
  int64_t first_output(int64_t unit) const {
    return unit / section_units_ * section_out_ + unit % section_units_ * kChannelBlock;
  }

  const Kernels& kernels_;
  const ConvGeometry& geometry_;
  const PackedHeader header_;
  const bool lanes_;
  const int64_t section_in_;     // input channels of a section
  const int64_t section_out_;    // output channels
  const int64_t section_units_;  // blocks of 16 output channels
  const int64_t units_;
};

// Writes the elements of grad_weight. The order of all sums depends on the problem and the number
// of threads alone.
void run_wgrad(const Kernels& kernels, TrainingConv conv, OutputGradient gradient,
               const WeightView& grad_weight);

// The same of a dense 3x3 by Winograd.
void run_winograd_wgrad(const Kernels& kernels, const TrainingConv& conv,
                        const OutputGradient& gradient, const WeightView& grad_weight);

// Adds `parts` sums of `floats` floats each, in order, and writes the weight's elements.
void finish_wgrad(const Microkernels& kernels, float* sums, int64_t floats, int64_t parts,
                  const WeightView& grad_weight);

}  // namespace fastres::cpu

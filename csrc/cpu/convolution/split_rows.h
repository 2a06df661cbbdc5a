// A band of a dense convolution on matrix tiles; see split.h.

#pragma once

#include <optional>
#include <vector>

#include "../runtime/scratch.h"
#include "../split.h"
#include "conv_layer.h"
#include "split_positions.h"

namespace fastres::cpu {

// Whether operators on a tensor of this type multiply bfloat16 values.
inline bool multiplies_bfloat16(const Microkernels& kernels) {
  return kernels.split != nullptr && kernels.split->parts == kBfloat16Parts;
}

// The selected kernels for a tensor of `type`. `spatial` is the only layer that may be Winograd's,
// whose transforms need float32's digits.
inline const Microkernels& kernels_for(StorageType type, const ConvLayer& spatial) {
  const bool winograd = spatial.header.layout == PackedLayout::winograd;
  return selected_microkernels(winograd ? StorageType::float32 : type);
}

// Whether the layer, with rows of so many output pixels, is faster on matrix tiles. Of the layer
// alone, so that the bits of the results do not depend on how threads share it.
bool prefers_tiles(const Microkernels& kernels, const ConvLayer& layer, int64_t pixels);

// Groups of few channels: products of bfloat16 values are so cheap that tiles take two blocks of
// them at a time and multiply with the zeros between.
bool has_narrow_groups(const PackedHeader& header);

// A layer's `outputs`: a 1x1 goes through all images as through one. Of the layer alone, too: a
// bottleneck's layers have the same ones band by band and each on its own.
int64_t shared_outputs(const PackedHeader& header, int64_t batch, Extent out);

// The rows of so many output pixels whose input tiles take without slowing down; more input
// channels than some come one part after the other.
int64_t split_rows_in_cache(const Microkernels& kernels, const ConvLayer& layer, int64_t pixels);

// Groups, narrow ones sixteen channels of them, whose input is split together: no more than one
// band of all their rows has room for.
int64_t split_groups_at_once(const PackedHeader& header);

// A layer's weights in bfloat16 parts, kept by one thread from one band to the next.
class SplitPanels {
 public:
  // In `memory`, which must last as long.
  SplitPanels(const Microkernels& kernels, const ConvLayer& layer, Scratch& memory);

  enum class State : uint8_t { unknown, split, without_parts };
  // Of one panel and part of the reduction.
  State& state(int64_t panel, int64_t part);
  Bfloat16* panel(int64_t panel) const { return memory_ + panel * panel_values_; }

 private:
  int64_t parts_;
  int64_t panel_values_;
  Bfloat16* memory_;
  std::vector<State> states_;
};

// Whether a layer's split weights are few enough to be kept.
bool fits_kept_panels(const Microkernels& kernels, const ConvLayer& layer);

// Keeps a layer's split weights in `memory` where that pays: if it prefers tiles, for several
// bands.
std::optional<SplitPanels> kept_panels(const Microkernels& kernels, const ConvLayer& layer,
                                       int64_t pixels, int64_t bands, Scratch& memory);

// The input of a band in parts, in this thread's scratch memory until the next band's.
class SplitBand {
 public:
  SplitBand(const Microkernels& kernels, const ConvLayer& layer, const ConvBand& band,
            Range groups);

  // The input channels of a group come in so many parts of the reduction.
  int64_t parts() const { return parts_; }
  Range channels(int64_t part) const;
  // Either all parts together, where each panel's weights are packed right before their use and the
  // level-2 cache has room, or one after the other.
  bool loads_all_parts() const { return loads_all_parts_; }
  void load(const ConvBand& band, Range parts);

  // Whether all loaded values have parts or, with narrow groups, are finite.
  bool finite() const { return finite_; }

  // A part of the weights of one panel of output channels, of which `tile` has weights and outputs.
  struct PanelPart {
    ConvTile tile;
    int64_t panel, part;
  };

  // A loaded part for one panel, while the weights of `next` are split, null for none. False, and
  // nothing is written, where a value has no bfloat16 parts.
  bool multiply(const PanelPart& weights, int64_t group, const PanelPart* next);

  // Whether a panel's weights are split before its turn, and have to be there sooner.
  bool splits_ahead() const { return !packed_ && kept_ == nullptr && has_room_ahead_; }

  // Whether several panels can be multiplied side by side: their weights are kept, in one part.
  bool keeps_panels() const {
    return packed_panels_ != nullptr || (kept_ != nullptr && parts_ == 1);
  }
  // Splits a panel's weights, of which `tile` is, to be kept. False where one has no parts.
  bool split(const ConvTile& tile, int64_t panel) {
    return split_weights({tile, panel, 0}) != nullptr;
  }
  // The loaded input for panels that are split, of which `tile` has the outputs.
  bool multiply_kept(const ConvTile& tile, Range panels) const;

 private:
  // Null where a weight has no bfloat16 parts.
  const Bfloat16* split_weights(const PanelPart& weights);
  bool is_split(const PanelPart& weights) const;
  // Where split weights are kept; and where others go, not over those that are multiplied.
  Bfloat16* kept_place(const PanelPart& weights) const;
  Bfloat16* next_place();
  SplitWeights unsplit(const PanelPart& weights);
  const Bfloat16* remember(const PanelPart& weights, const Bfloat16* target, bool have_parts);
  SplitTile tile_of(int64_t group, int64_t part, int64_t blocks) const;

  const SplitKernels& kernels_;
  const PackedHeader header_;
  const int64_t narrow_width_;  // channels of a narrow group; 0 for others
  const Range groups_;
  const SplitPositions positions_;
  const int64_t parts_;
  const int64_t part_values_;  // of a panel's split weights, the most
  const ptrdiff_t plane_stride_;
  bool loads_all_parts_;
  const bool packed_;                    // weights, as tiles take them
  const Bfloat16* const packed_panels_;  // all of them, where they are few enough; null for not
  SplitPanels* const kept_;
  const bool has_room_ahead_;
  // Of what is not kept, the last that was split; null where a weight has no parts.
  struct {
    int64_t panel = -1, part = -1;
    const Bfloat16* weights = nullptr;
  } last_;
  int64_t place_ = 0;
  Range loaded_{0, 0};   // parts
  bool finite_ = false;  // all values that are loaded
  Bfloat16* planes_ = nullptr;
};

}  // namespace fastres::cpu

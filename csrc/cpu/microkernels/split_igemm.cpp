// Implicit-GEMM convolution of split values on AMX's tiles: 32 positions x 32 output channels in
// four tiles of sums, two tiles of either operand's parts beside them.

#include <algorithm>
#include <optional>

#include "fetching.h"
#include "finishing.h"
#include "kernels.h"
#include "tile_registers.h"
#include "weight_splitter.h"

#if defined(__AVX512BW__)

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

// Tiles 0 to 3 are sums, [pixels][blocks], 4 and 5 pixels, 6 and 7 weights.
constexpr int kPixelTile = 4;
constexpr int kWeightTile = 6;

inline void load_pixels(const Bfloat16* rows, bool both) {
  load_tile<kPixelTile>(rows);
  if (both) load_tile<kPixelTile + 1>(rows + kTileRows * kSplitChannels);
}
template <int kBlocks>
inline void load_weights(const Bfloat16* part) {
  load_tile<kWeightTile>(part);
  if constexpr (kBlocks == 2) load_tile<kWeightTile + 1>(part + kSplitBlock);
}

template <int kPixelTiles, int kBlocks>
inline void add_products() {
  multiply_tiles<0, kPixelTile, kWeightTile>();
  if constexpr (kBlocks == 2) multiply_tiles<1, kPixelTile, kWeightTile + 1>();
  if constexpr (kPixelTiles == 2) {
    multiply_tiles<2, kPixelTile + 1, kWeightTile>();
    if constexpr (kBlocks == 2) multiply_tiles<3, kPixelTile + 1, kWeightTile + 1>();
  }
}

// Splits the weights that come next while the products of others are computed, between which the
// processor's other ports are idle.
template <int kParts>
class SplittingAhead {
 public:
  // In so many steps.
  SplittingAhead(const SplitWeights* next, int64_t steps) {
    if (next == nullptr) return;
    splitter_.emplace(*next);
    left_ = splitter_->pairs();
    at_once_ = (left_ + steps - 1) / steps;
  }
  [[gnu::always_inline]] void step() {
    if (left_ > 0) split_some();
  }
  bool finite() const { return !splitter_.has_value() || splitter_->finite(); }

 private:
  [[gnu::noinline]] void split_some() {
    const int64_t some = std::min(at_once_, left_);
    splitter_->split(some);
    left_ -= some;
  }

  std::optional<WeightSplitter<kParts>> splitter_;
  int64_t left_ = 0;
  int64_t at_once_ = 0;
};

// What is done between groups of products.
template <int kParts, class T>
struct Meanwhile {
  Fetching fetching;
  Finishing<T> finishing;
  SplittingAhead<kParts> ahead;

  [[gnu::always_inline]] void step() {
    finishing.step();
    ahead.step();
  }
};

// Products of parts that a chunk takes.
constexpr int64_t products_per_chunk(int parts) { return parts == kBfloat16Parts ? 1 : 6; }

// Thirty-two input channels of one tap. Every group of products but the last changes one operand.
template <int kParts, int kPixelTiles, int kBlocks, class T>
inline void add_chunk(const SplitTile& t, const Bfloat16* pixels, const Bfloat16* weights,
                      Meanwhile<kParts, T>& meanwhile) {
  constexpr bool kBoth = kPixelTiles == 2;
  const Bfloat16 *high = pixels, *middle = high + t.plane_stride, *low = middle + t.plane_stride;
  const auto products = [&meanwhile] {
    add_products<kPixelTiles, kBlocks>();
    meanwhile.step();
  };
  load_pixels(high, kBoth);
  if constexpr (kParts == kBfloat16Parts) {
    load_weights<kBlocks>(weights);
    return products();
  }
  load_weights<kBlocks>(weights + 2 * t.part_stride);
  products();
  load_weights<kBlocks>(weights + t.part_stride);
  products();
  load_pixels(middle, kBoth);
  products();
  load_weights<kBlocks>(weights);
  products();
  load_pixels(low, kBoth);
  products();
  load_pixels(high, kBoth);
  products();
}

// One running sum over thousands of products loses digits that several keep: these many chunks of
// 32 channels are summed in the tiles, more are in equal parts that are added up in memory.
constexpr int64_t kChunksPerSum = 36;

inline void clear_sums() {
  clear_tile<0>();
  clear_tile<1>();
  clear_tile<2>();
  clear_tile<3>();
}

template <int kPixelTiles, int kBlocks>
inline void store_sums(Sums& sums) {
  store_tile<0>(sums.values[0][0]);
  if constexpr (kBlocks == 2) store_tile<1>(sums.values[1][0]);
  if constexpr (kPixelTiles == 2) {
    store_tile<2>(sums.values[0][kTileRows]);
    if constexpr (kBlocks == 2) store_tile<3>(sums.values[1][kTileRows]);
  }
}

template <int kPixelTiles, int kBlocks>
[[gnu::noinline]] void add_sums(Sums& sums) {
  Sums part;
  store_sums<kPixelTiles, kBlocks>(part);
  for (int block = 0; block < kBlocks; ++block) {
    for (int64_t position = 0; position < kPixelTiles * kTileRows; ++position) {
      float* to = sums.values[block][position];
      store(to, load(to) + load(part.values[block][position]));
    }
  }
}

template <int kParts, int kPixelTiles, int kBlocks, class T>
void sum_products(const SplitTile& t, int64_t position, const Bfloat16* weights,
                  Meanwhile<kParts, T>& meanwhile, Sums& sums) {
  const int64_t chunks = t.tap_count * t.chunks;
  const int64_t parts = (chunks + kChunksPerSum - 1) / kChunksPerSum;
  const int64_t at_once = (chunks + parts - 1) / parts;
  bool first = true;
  const auto finish_part = [&] {
    first ? store_sums<kPixelTiles, kBlocks>(sums) : add_sums<kPixelTiles, kBlocks>(sums);
    first = false;
  };
  clear_sums();
  int64_t left = at_once;
  for (int64_t tap = 0; tap < t.tap_count; ++tap) {
    const Bfloat16* pixels = t.input + (t.taps[tap] + position) * kSplitChannels;
    for (int64_t chunk = 0; chunk < t.chunks; ++chunk, --left) {
      if (left == 0) {
        finish_part();
        clear_sums();
        left = at_once;
      }
      meanwhile.fetching.step();
      add_chunk<kParts, kPixelTiles, kBlocks>(t, pixels, weights, meanwhile);
      pixels += kParts * t.plane_stride;
      weights += t.chunk_stride;
    }
  }
  finish_part();
}

template <int kParts, int kBlocks, class T>
bool all_positions(const SplitTile& t, const ConvTile& output) {
  const int64_t positions = (output.rows - 1) * t.row_positions + output.pixels;
  const int64_t chunks = t.tap_count * t.chunks;
  const int64_t blocks = (positions + kSplitPositions - 1) / kSplitPositions;
  const int64_t all_chunks = blocks * t.panels * chunks;
  Meanwhile<kParts, T> meanwhile{Fetching(output.upcoming, all_chunks),
                                 Finishing<T>(t, output),
                                 {t.next, all_chunks * products_per_chunk(kParts)}};
  Sums sums[2];
  int64_t turn = 0;
  for (int64_t position = 0; position < positions; position += kSplitPositions) {
    const int64_t count = std::min(kSplitPositions, positions - position);
    const auto sum = count > kTileRows ? sum_products<kParts, 2, kBlocks, T>
                                       : sum_products<kParts, 1, kBlocks, T>;
    for (int64_t panel = 0; panel < t.panels; ++panel, ++turn) {
      Sums& mine = sums[turn % 2];
      sum(t, position, t.weights + panel * t.panel_stride, meanwhile, mine);
      meanwhile.finishing.end();
      meanwhile.finishing.begin(mine, count, panel, products_per_chunk(kParts) * chunks);
    }
  }
  meanwhile.finishing.end();
  return meanwhile.ahead.finite();
}

template <int kParts, class T>
bool multiply(const SplitTile& tile, const ConvTile& output) {
  const TileRegisters registers;
  return tile.blocks == 1 ? all_positions<kParts, 1, T>(tile, output)
                          : all_positions<kParts, 2, T>(tile, output);
}

}  // namespace

template <int kParts>
bool split_igemm(const SplitTile& tile, const ConvTile& output) {
  if constexpr (kParts == kBfloat16Parts) {
    if (output.output16 != nullptr) return multiply<kParts, Bfloat16>(tile, output);
  }
  return multiply<kParts, float>(tile, output);
}
template bool split_igemm<kFloat32Parts>(const SplitTile&, const ConvTile&);
template bool split_igemm<kBfloat16Parts>(const SplitTile&, const ConvTile&);

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

#endif

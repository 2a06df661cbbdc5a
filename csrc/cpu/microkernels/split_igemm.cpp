// Implicit-GEMM convolution of split values on AMX's tiles: 32 positions x 32 output channels in
// four tiles of sums, two tiles of either operand's parts beside them.

#include <algorithm>
#include <optional>
#include <type_traits>

#include "activation.h"
#include "fetching.h"
#include "kernels.h"
#include "round.h"
#include "weight_splitter.h"

#if defined(__AVX512BW__)

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kRowBytes = 64;

// As assembly, so that neither compilers without these instructions' names nor a build of their own
// are needed. None says that it reads memory: what they read was written by other functions.
template <int kTile>
inline void load_tile(const Bfloat16* rows) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(kRowBytes), "i"(kTile));
}
template <int kTile>
inline void store_tile(float* rows) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(rows), "r"(kRowBytes), "i"(kTile)
               : "memory");
}
template <int kTile>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kSums, int kPixels, int kWeights>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
               :
               : "i"(kSums), "i"(kPixels), "i"(kWeights));
}

// Tiles 0 to 3 are sums, [pixels][blocks], 4 and 5 pixels, 6 and 7 weights.
constexpr int kPixelTile = 4;
constexpr int kWeightTile = 6;

class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) Configuration {
      uint8_t palette = 1;
      uint8_t reserved[15] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } configuration;
    for (int tile = 0; tile < 8; ++tile) {
      configuration.row_bytes[tile] = kRowBytes;
      configuration.rows[tile] = kTileRows;
    }
    asm volatile("ldtilecfg %0" : : "m"(configuration));
  }
  ~TileRegisters() { asm volatile("tilerelease"); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

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

// The sums of up to 32 positions, [block][position][16].
struct Sums {
  alignas(64) float values[2][kSplitPositions][16];
};

// The first of sixteen values, `count` of them.
inline Vec load_values(const float* from, int64_t count) {
  return count >= 16 ? load(from) : load_partial(from, count);
}
inline Vec load_values(const Bfloat16* from, int64_t count) { return (Vec)widen_some(from, count); }
inline void store_values(float* to, Vec values, int64_t count) {
  count >= 16 ? store(to, values) : store_partial(to, values, count);
}
inline void store_values(Bfloat16* to, Vec values, int64_t count) {
  _mm256_mask_storeu_epi16(to, lanes_mask(count), round_one(values));
}

// One pixel's shift, residual and activation, of some of sixteen output channels.
template <class T>
inline void finish(const ConvTile& t, const float* sums, const float* shift, const T* residual,
                   T* output, int64_t channels) {
  Vec v = load(sums) + load_values(shift, channels);
  if (residual != nullptr) v += load_values(residual, channels);
  store_values(output, activate(v, t.act, t.act_slope), channels);
}

// Makes outputs of the sums before while the next ones are computed, a few pixels between any two
// groups of products. All at once they would fill the processor's window of instructions, and the
// tiles would run dry: with 64 input channels that takes 1.4 times as long.
//
// T is what outputs and residuals are stored as.
template <class T>
class Finishing {
 public:
  Finishing(const SplitTile& tile, const ConvTile& output)
      : t_(output),
        row_positions_(tile.row_positions),
        block_stride_(tile.output_block_stride),
        blocks_(tile.blocks),
        simple_(output.out_channels % (16 * tile.blocks) == 0 &&
                (output.act == Activation::relu || output.act == Activation::none)),
        bound_(broadcast(output.act == Activation::relu ? 0.0F : -__builtin_inff())),
        at_(first_place(output)),
        first_(at_) {}

  // The next `count` positions, or the same for another panel than the first, are to be finished
  // from `sums`, in so many steps.
  void begin(const Sums& sums, int64_t count, int64_t panel, int64_t steps) {
    if (panel == 0) {
      first_ = at_;
    } else {
      at_ = first_;
    }
    channel_ = panel * kPanel;
    sums_ = sums.values[0][0];
    left_ = count;
    at_once_ = (count + steps - 1) / steps;
  }
  [[gnu::always_inline]] void step() {
    if (left_ > 0) finish_positions(std::min(at_once_, left_));
  }
  void end() {
    if (left_ > 0) finish_positions(left_);
  }

 private:
  static constexpr int64_t kPanel = 32;
  static constexpr ptrdiff_t kBlockSums = kSplitPositions * 16;

  // Of a row's positions the first ones are pixels, the others belong to no output.
  [[gnu::noinline]] void finish_positions(int64_t count) {
    left_ -= count;
    while (count > 0) {
      const bool outputs = at_.column < t_.pixels;
      const int64_t run = std::min(count, (outputs ? t_.pixels : row_positions_) - at_.column);
      if (outputs) finish_pixels(run);
      sums_ += run * 16;
      at_.column += run;
      if (at_.column == row_positions_) next_row();
      count -= run;
    }
  }

  void finish_pixels(int64_t count) {
    if (!simple_) {
      finish_any(count);
    } else if (blocks_ == 1) {
      at_.residual == nullptr ? finish_simple<1, false>(count) : finish_simple<1, true>(count);
    } else {
      at_.residual == nullptr ? finish_simple<2, false>(count) : finish_simple<2, true>(count);
    }
    at_.output += count * t_.output_pixel_stride;
    if (at_.residual != nullptr) at_.residual += count * t_.residual_pixel_stride;
  }

  template <int kBlocks, bool kResidual>
  void finish_simple(int64_t count) const {
    Vec shift[kBlocks];
    for (int block = 0; block < kBlocks; ++block) {
      shift[block] = load(t_.shift + channel_ + block * 16);
    }
    const float* sums = sums_;
    T* output = at_.output + channel_;
    const T* residual = at_.residual + (kResidual ? channel_ : 0);
    for (; count > 0; --count) {
      Vec values[kBlocks];
      for (int block = 0; block < kBlocks; ++block) {
        Vec v = load(sums + block * kBlockSums) + shift[block];
        if constexpr (kResidual) v += load_values(residual + block * block_stride_, 16);
        values[block] = at_least(v, bound_);
      }
      if constexpr (kBlocks == 2 && !std::is_same_v<T, float>) {
        // Outputs are a convolution's, whose blocks are adjacent.
        _mm512_storeu_si512(output, round_both((__m512)values[0], (__m512)values[1]));
      } else {
        for (int block = 0; block < kBlocks; ++block) {
          store_values(output + block * block_stride_, values[block], 16);
        }
      }
      sums += 16;
      output += t_.output_pixel_stride;
      if constexpr (kResidual) residual += t_.residual_pixel_stride;
    }
  }

  void finish_any(int64_t count) const {
    const int64_t channels = std::min(kPanel, t_.out_channels - channel_);
    for (int64_t pixel = 0; pixel < count; ++pixel) {
      const T* residual =
          at_.residual == nullptr ? nullptr : at_.residual + pixel * t_.residual_pixel_stride;
      T* output = at_.output + pixel * t_.output_pixel_stride;
      for (int64_t first = 0; first < channels; first += 16) {
        const ptrdiff_t block = first / 16, channel = channel_ + block * block_stride_;
        finish(t_, sums_ + pixel * 16 + block * kBlockSums, t_.shift + channel_ + first,
               residual == nullptr ? nullptr : residual + channel, output + channel,
               channels - first);
      }
    }
  }

  void next_row() {
    at_.column = 0;
    at_.output += t_.output_row_stride - t_.pixels * t_.output_pixel_stride;
    if (at_.residual == nullptr) return;
    at_.residual += t_.residual_row_stride - t_.pixels * t_.residual_pixel_stride;
  }

  struct Place {
    T* output;
    const T* residual;
    int64_t column;
  };

  static Place first_place(const ConvTile& output) {
    if constexpr (std::is_same_v<T, float>) {
      return {output.output, output.residual, 0};
    } else {
      return {output.output16, output.residual16, 0};
    }
  }

  const ConvTile& t_;
  const int64_t row_positions_;
  const ptrdiff_t block_stride_;
  const int64_t blocks_;
  const bool simple_;
  const Vec bound_;
  Place at_;
  Place first_;  // of the positions that are being finished
  int64_t channel_ = 0;
  const float* sums_ = nullptr;
  int64_t left_ = 0;
  int64_t at_once_ = 0;
};

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
    const Bfloat16* pixels = t.input + t.taps[tap] + position * kSplitChannels;
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

// Float32 values into three bfloat16 parts, or rounded to one. AVX-512 only, as are the tiles that
// multiply them.

#include <algorithm>

#include "kernels.h"
#include "round.h"
#include "transpose.h"

#if defined(__AVX512BW__)

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

// Rounded to eight binary digits, ties away from zero; an overflow becomes infinity.
inline __m512 to_bfloat16(__m512 x) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i kept = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), kept));
}

// The parts, each in the upper halves of its words. Both remainders are exact.
struct Parts {
  __m512 high, middle, low;

  explicit Parts(__m512 x) : high(to_bfloat16(x)) {
    const __m512 rest = _mm512_sub_ps(x, high);
    middle = to_bfloat16(rest);
    low = _mm512_sub_ps(rest, middle);
  }
};

// Whether everything that was seen has parts: otherwise the first remainder is not finite.
class Seen {
 public:
  void add(__m512 x, const Parts& parts) {
    sum_ = _mm512_fmadd_ps(_mm512_sub_ps(x, parts.high), _mm512_setzero_ps(), sum_);
  }
  bool finite() const {
    return _mm512_cmp_ps_mask(sum_, _mm512_setzero_ps(), _CMP_EQ_OQ) == 0xffff;
  }

 private:
  __m512 sum_ = _mm512_setzero_ps();
};

inline void store_parts(__m512i high, __m512i middle, __m512i low, Bfloat16* target,
                        ptrdiff_t part_stride) {
  _mm512_store_si512(target, high);
  _mm512_store_si512(target + part_stride, middle);
  _mm512_store_si512(target + 2 * part_stride, low);
}

// The upper halves of the words of two vectors in turn.
inline __m512i pair_up(__m512 a, __m512 b) {
  const __m512i upper = _mm512_srli_epi32(_mm512_castps_si512(a), 16);
  return _mm512_mask_mov_epi16(upper, 0xaaaaaaaa, _mm512_castps_si512(b));
}

inline __m512i interleaved(__m512i halves) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
}

// Pairs of each part, of a channel and another or of two pixels.
template <int kParts>
inline void split_pair(__m512 a, __m512 b, Bfloat16* target, ptrdiff_t part_stride, Seen& seen) {
  if constexpr (kParts == kBfloat16Parts) {
    _mm512_store_si512(target, interleaved(round_both(a, b)));
    return;
  }
  const Parts x(a), y(b);
  seen.add(a, x);
  seen.add(b, y);
  store_parts(pair_up(x.high, y.high), pair_up(x.middle, y.middle), pair_up(x.low, y.low), target,
              part_stride);
}

// Thirty-two channels of a pixel, in the order of its plane.
template <int kParts>
inline void split_channels(__m512 a, __m512 b, Bfloat16* target, ptrdiff_t part_stride,
                           Seen& seen) {
  if constexpr (kParts == kBfloat16Parts) {
    _mm512_store_si512(target, round_both(a, b));
  } else {
    split_pair<kParts>(a, b, target, part_stride, seen);
  }
}

// Walks over pixels row by row, image by image.
class PixelWalk {
 public:
  explicit PixelWalk(const SplitPixels& s)
      : s_(s), at_(s.input), left_(s.images * s.rows * s.pixels) {}

  int64_t left() const { return left_; }
  const float* next() {
    const float* pixel = at_;
    --left_;
    at_ += s_.pixel_stride;
    if (++column_ == s_.pixels) next_row();
    return pixel;
  }

 private:
  void next_row() {
    column_ = 0;
    at_ += s_.row_stride - s_.pixels * s_.pixel_stride;
    if (++row_ < s_.rows) return;
    row_ = 0;
    at_ += s_.image_stride - s_.rows * s_.row_stride;
  }

  const SplitPixels& s_;
  const float* at_;
  int64_t left_;
  int64_t column_ = 0, row_ = 0;
};

constexpr int64_t kPairs = kSplitChannels / 2;

// The next thirty-two pixels; null beyond the last.
struct PixelChunk {
  const float* pixels[kSplitChannels];

  explicit PixelChunk(PixelWalk& walk) {
    for (const float*& pixel : pixels) pixel = walk.left() > 0 ? walk.next() : nullptr;
  }
  // Channels [first, ...) of a pair of them.
  template <int kParts>
  void split(int64_t pair, int64_t first, __mmask16 lanes, Bfloat16* target, ptrdiff_t part_stride,
             Seen& seen) const {
    const auto load = [&](const float* pixel) {
      return pixel == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes, pixel + first);
    };
    split_pair<kParts>(load(pixels[2 * pair]), load(pixels[2 * pair + 1]), target, part_stride,
                       seen);
  }
};

// Whether everything that was seen is finite: no exponent has all its bits.
class SeenBits {
 public:
  void add(const Bfloat16* values) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    const __m512i bits = _mm512_and_si512(_mm512_load_si512(values), exponent);
    found_ |= _mm512_cmpeq_epi16_mask(bits, exponent);
  }
  bool finite() const { return found_ == 0; }

 private:
  __mmask32 found_ = 0;
};

// Thirty-two channels of which `left` are there.
template <int kParts>
inline void load_channels(const float* values, int64_t left, Bfloat16* to, ptrdiff_t part_stride,
                          Seen& seen) {
  split_channels<kParts>(_mm512_maskz_loadu_ps(lanes_mask(left), values),
                         _mm512_maskz_loadu_ps(lanes_mask(left - 16), values + 16), to, part_stride,
                         seen);
}
template <int kParts>
inline void load_channels(const Bfloat16* values, int64_t left, Bfloat16* to, ptrdiff_t, Seen&) {
  const auto mask = static_cast<__mmask32>(left >= 32 ? ~0U : (1U << left) - 1U);
  _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask, values));
}

// Some chunks at a time: so many planes are written that all at once would be in more pages than
// the processor keeps the addresses of.
template <int kParts, bool kFinite, class T>
bool load_pixels(const SplitPixels& s, const T* input) {
  constexpr int64_t kChunksAtOnce = 4;
  Seen seen;
  SeenBits bits;
  const int64_t chunks = split_chunks(s.channels);
  for (int64_t first = 0; first < chunks; first += kChunksAtOnce) {
    const int64_t last = std::min(first + kChunksAtOnce, chunks);
    for (int64_t row = 0; row < s.rows; ++row) {
      for (int64_t pixel = 0; pixel < s.pixels; ++pixel) {
        const T* from = input + row * s.row_stride + pixel * s.pixel_stride;
        Bfloat16* to = s.planes + (row * s.row_positions + pixel) * kSplitChannels;
        for (int64_t chunk = first; chunk < last; ++chunk) {
          load_channels<kParts>(from + chunk * kSplitChannels, s.channels - chunk * kSplitChannels,
                                to + chunk * kParts * s.plane_stride, s.plane_stride, seen);
          if constexpr (kFinite) bits.add(to + chunk * s.plane_stride);
        }
      }
    }
  }
  return seen.finite() && bits.finite();
}

template <class T>
bool load_one_part(const SplitPixels& s, const T* input) {
  constexpr int kParts = kBfloat16Parts;
  return s.must_be_finite ? load_pixels<kParts, true>(s, input)
                          : load_pixels<kParts, false>(s, input);
}

}  // namespace

template <int kParts>
bool split_pixels(const SplitPixels& s) {
  if constexpr (kParts == kBfloat16Parts) {
    return s.input16 != nullptr ? load_one_part(s, s.input16) : load_one_part(s, s.input);
  } else {
    return load_pixels<kParts, false>(s, s.input);
  }
}

namespace {

void split_narrow_block(const SplitWeights& s, int64_t block) {
  const int64_t width = s.group_width;
  for (int64_t tap = 0; tap < s.taps; ++tap) {
    const float* from = s.weights + block * s.block_stride + tap * width * 16;
    Bfloat16* to = s.target + (tap * s.blocks + block) * kSplitBlock;
    std::fill_n(to, kSplitBlock, Bfloat16{0});
    to += (s.half + block) * kSplitBlock / 2;
    const auto channel = [&](int64_t c) {
      const int64_t first = c / width * width;
      const auto group = static_cast<__mmask16>(((1U << width) - 1U) << first);
      return _mm512_maskz_loadu_ps(group, from + (c - first) * 16);
    };
    for (int64_t c = 0; c < 16; c += 2) {
      _mm512_store_si512(to + c * 16, interleaved(round_both(channel(c), channel(c + 1))));
    }
  }
}

}  // namespace

template <int kParts>
bool split_weights(const SplitWeights& s) {
  if constexpr (kParts == kBfloat16Parts) {
    if (s.group_width > 0) {
      for (int64_t block = 0; block < s.blocks; ++block) split_narrow_block(s, block);
      return true;
    }
  }
  // Of a chunk's channels the first of a pair, times its number, and how far the other is.
  constexpr int64_t kStep = kParts == kBfloat16Parts ? 2 : 1;
  constexpr int64_t kOther = kParts == kBfloat16Parts ? 1 : kPairs;
  Seen seen;
  const ptrdiff_t part_stride = s.blocks * kSplitBlock;
  for (int64_t block = 0; block < s.blocks; ++block) {
    const float* from = s.weights + block * s.block_stride;
    Bfloat16* to = s.target + block * kSplitBlock;
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      for (int64_t left = s.channels; left > 0; left -= kSplitChannels) {
        const auto channel = [&](int64_t c) {
          return c < left ? _mm512_loadu_ps(from + c * 16) : _mm512_setzero_ps();
        };
        for (int64_t pair = 0; pair < kPairs; ++pair) {
          split_pair<kParts>(channel(pair * kStep), channel(pair * kStep + kOther), to + pair * 32,
                             part_stride, seen);
        }
        from += std::min(left, kSplitChannels) * 16;
        to += kParts * part_stride;
      }
      from += s.tap_stride - s.channels * 16;
    }
  }
  return seen.finite();
}

namespace {

// Pairs of the columns of sixteen rows of thirty-two values side by side.
void store_column_pairs(const Bfloat16 (*rows)[kSplitChannels], Bfloat16* target) {
  const auto* pairs = reinterpret_cast<const float*>(rows);
  auto* columns = reinterpret_cast<float*>(target);
  for (int64_t column = 0; column < 16; column += kQuad) {
    Vec four[kQuad];
    transpose(pairs + column, 16, four);
    for (int i = 0; i < kQuad; ++i) store(columns + (column + i) * 16, four[i]);
  }
}

inline __m512 load_sixteen(const float* values) { return _mm512_loadu_ps(values); }
inline __m512 load_sixteen(const Bfloat16* values) { return widen_some(values, 16); }
struct Float16 {
  uint16_t bits;
};
inline __m512 load_sixteen(const Float16* values) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
}

template <class T>
void round_rows(const WeightRows& w, const T* rows) {
  alignas(64) Bfloat16 rounded[16][kSplitChannels];
  Bfloat16* target = w.target;
  for (int64_t first = 0; first < w.channels; first += kSplitChannels) {
    for (int row = 0; row < 16; ++row) {
      const T* values = rows + row * w.row_stride + first;
      const __m512 scale = _mm512_set1_ps(w.scale[row]);
      _mm512_store_si512(rounded[row], round_both(_mm512_mul_ps(load_sixteen(values), scale),
                                                  _mm512_mul_ps(load_sixteen(values + 16), scale)));
    }
    store_column_pairs(rounded, target);
    target += w.chunk_stride;
  }
}

}  // namespace

void round_weight_rows(const WeightRows& w) {
  switch (w.type) {
    case StorageType::float32:
      return round_rows(w, static_cast<const float*>(w.rows));
    case StorageType::bfloat16:
      return round_rows(w, static_cast<const Bfloat16*>(w.rows));
    case StorageType::float16:
      return round_rows(w, static_cast<const Float16*>(w.rows));
  }
}

template <int kParts>
bool split_columns(const SplitPixels& s) {
  Seen seen;
  const int64_t blocks = (s.channels + 15) / 16;
  PixelWalk walk(s);
  for (Bfloat16* to = s.planes; walk.left() > 0; to += kParts * s.plane_stride) {
    const PixelChunk chunk(walk);
    for (int64_t block = 0; block < blocks; ++block) {
      const __mmask16 lanes = lanes_mask(s.channels - block * 16);
      for (int64_t pair = 0; pair < kPairs; ++pair) {
        chunk.split<kParts>(pair, block * 16, lanes, to + block * kSplitBlock + pair * 32,
                            s.plane_stride, seen);
      }
    }
  }
  return seen.finite();
}

template <int kParts>
bool split_transposed(const SplitPixels& s) {
  Seen seen;
  alignas(64) Bfloat16 pairs[kParts][kPairs][32];
  PixelWalk walk(s);
  for (Bfloat16* to = s.planes; walk.left() > 0; to += kParts * s.plane_stride) {
    const PixelChunk chunk(walk);
    for (int64_t first = 0; first < s.channels; first += 16) {
      const __mmask16 lanes = lanes_mask(s.channels - first);
      for (int64_t pair = 0; pair < kPairs; ++pair) {
        chunk.split<kParts>(pair, first, lanes, pairs[0][pair], kSplitBlock, seen);
      }
      for (int64_t part = 0; part < kParts; ++part) {
        store_column_pairs(pairs[part], to + part * s.plane_stride + first * kSplitChannels);
      }
    }
  }
  return seen.finite();
}

template bool split_pixels<kFloat32Parts>(const SplitPixels&);
template bool split_pixels<kBfloat16Parts>(const SplitPixels&);
template bool split_weights<kFloat32Parts>(const SplitWeights&);
template bool split_weights<kBfloat16Parts>(const SplitWeights&);
template bool split_columns<kFloat32Parts>(const SplitPixels&);
template bool split_columns<kBfloat16Parts>(const SplitPixels&);
template bool split_transposed<kFloat32Parts>(const SplitPixels&);
template bool split_transposed<kBfloat16Parts>(const SplitPixels&);

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

#endif

// Float32 values into three bfloat16 parts, or rounded to one. AVX-512 only, as are the tiles that
// multiply them.

#include <algorithm>

#include "kernels.h"
#include "split_parts.h"
#include "transpose.h"
#include "weight_splitter.h"

#if defined(__AVX512BW__)

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

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
  WeightSplitter<kParts> splitter(s);
  splitter.split_all();
  return splitter.finite();
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

// Float32 values into three bfloat16 parts. AVX-512 only, as are the tiles that multiply them.

#include "kernels.h"

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

// The upper halves of the words of one vector, then of another.
inline __m512i concatenate(__m512 a, __m512 b) {
  alignas(64) static constexpr uint16_t kOddWords[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                         23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                         45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(_mm512_castps_si512(a), _mm512_load_si512(kOddWords),
                                   _mm512_castps_si512(b));
}

inline __mmask16 lanes_mask(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

// Two vectors of sixteen channels of one pixel.
inline void split_pixel(__m512 a, __m512 b, Bfloat16* target, ptrdiff_t plane_stride, Seen& seen) {
  const Parts x(a), y(b);
  seen.add(a, x);
  seen.add(b, y);
  store_parts(concatenate(x.high, y.high), concatenate(x.middle, y.middle),
              concatenate(x.low, y.low), target, plane_stride);
}

// The same of two vectors in turn.
inline __m512i interleave(__m512 a, __m512 b) {
  const __m512i upper = _mm512_srli_epi32(_mm512_castps_si512(a), 16);
  return _mm512_mask_mov_epi16(upper, 0xaaaaaaaa, _mm512_castps_si512(b));
}

// Two input channels of sixteen output channels.
inline void split_pair(__m512 a, __m512 b, Bfloat16* target, ptrdiff_t part_stride, Seen& seen) {
  const Parts x(a), y(b);
  seen.add(a, x);
  seen.add(b, y);
  store_parts(interleave(x.high, y.high), interleave(x.middle, y.middle), interleave(x.low, y.low),
              target, part_stride);
}

}  // namespace

bool split_pixels(const SplitPixels& s) {
  Seen seen;
  const int64_t whole = s.channels / kSplitChannels;
  const int64_t left = s.channels % kSplitChannels;
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t pixel = 0; pixel < s.pixels; ++pixel) {
      const float* from = s.input + row * s.row_stride + pixel * s.pixel_stride;
      Bfloat16* to = s.planes + (row * s.row_positions + pixel) * kSplitChannels;
      for (int64_t chunk = 0; chunk < whole; ++chunk) {
        split_pixel(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16), to, s.plane_stride, seen);
        from += kSplitChannels;
        to += kSplitParts * s.plane_stride;
      }
      if (left == 0) continue;
      split_pixel(_mm512_maskz_loadu_ps(lanes_mask(left), from),
                  _mm512_maskz_loadu_ps(lanes_mask(left - 16), from + 16), to, s.plane_stride,
                  seen);
    }
  }
  return seen.finite();
}

bool split_weights(const SplitWeights& s) {
  constexpr int64_t kPairs = kSplitChannels / 2;
  Seen seen;
  const ptrdiff_t part_stride = s.blocks * kSplitBlock;
  for (int64_t block = 0; block < s.blocks; ++block) {
    const float* from = s.weights + block * s.block_stride;
    Bfloat16* to = s.target + block * kSplitBlock;
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      for (int64_t left = s.channels; left > 0; left -= kSplitChannels) {
        for (int64_t pair = 0; pair < kPairs; ++pair) {
          const __m512 a = 2 * pair < left ? _mm512_loadu_ps(from) : _mm512_setzero_ps();
          const __m512 b = 2 * pair + 1 < left ? _mm512_loadu_ps(from + 16) : _mm512_setzero_ps();
          split_pair(a, b, to + pair * 32, part_stride, seen);
          from += 32;
        }
        if (left < kSplitChannels) from -= (kSplitChannels - left) * 16;
        to += kSplitParts * part_stride;
      }
      from += s.tap_stride - s.channels * 16;
    }
  }
  return seen.finite();
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

#endif

// The parts of float32 values, as matrix tiles take them; see split.h. AVX-512 only.

#pragma once

#include "round.h"

#if defined(__AVX512BW__)

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

constexpr int64_t kPairs = kSplitChannels / 2;

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

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

#endif

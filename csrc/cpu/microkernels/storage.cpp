// bfloat16 and float16 storage to float32 and back, rounding to nearest even.

#include <bit>
#include <cstring>

#include "kernels.h"
#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

inline float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return 0x7fc0;  // NaN must not round to infinity
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

#if !defined(__F16C__)
inline float from_float16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000U} << 16;
  const uint32_t magnitude = half & 0x7fffU;
  if (magnitude >= 0x7c00U) {  // infinity and NaN
    return std::bit_cast<float>(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  }
  // The float with half's bits is half's value times 2^-112, subnormals included.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | sign);
}

inline uint16_t to_float16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return sign | 0x7e00;
  if (magnitude >= 0x477ff000U) return sign | 0x7c00;  // rounds to 65536 or more
  if (magnitude < 0x38800000U) {                       // subnormal: let the adder round
    const float rounded = std::bit_cast<float>(magnitude) + 0.5F;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(rounded) - 0x3f000000U);
  }
  const uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  return sign | static_cast<uint16_t>((rounded - 0x38000000U) >> 13);
}

void widen_float16(const uint16_t* source, float* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = from_float16(source[i]);
}
void narrow_float16(const float* source, uint16_t* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = to_float16(source[i]);
}
#else
void widen_float16(const uint16_t* source, float* target, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(half));
  }
  for (; i < count; ++i) target[i] = _cvtsh_ss(source[i]);
}
void narrow_float16(const float* source, uint16_t* target, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), half);
  }
  for (; i < count; ++i) target[i] = _cvtss_sh(source[i], _MM_FROUND_TO_NEAREST_INT);
}
#endif

}  // namespace

void widen(const void* source, StorageType type, float* target, int64_t count) {
  if (type == StorageType::float32) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const auto* values = static_cast<const uint16_t*>(source);
  if (type == StorageType::float16) return widen_float16(values, target, count);
  for (int64_t i = 0; i < count; ++i) target[i] = from_bfloat16(values[i]);
}

void narrow(const float* source, StorageType type, void* target, int64_t count) {
  if (type == StorageType::float32) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  auto* values = static_cast<uint16_t*>(target);
  if (type == StorageType::float16) return narrow_float16(source, values, count);
  for (int64_t i = 0; i < count; ++i) values[i] = to_bfloat16(source[i]);
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

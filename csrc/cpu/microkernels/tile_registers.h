// AMX's registers, tiles of sixteen rows of 64 bytes.

#pragma once

#include "kernels.h"

#if defined(__AVX512BW__)

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {

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

// While one lives the eight tiles can be used.
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

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

#endif

// A 64-bit hash at memory speed.
//
// Every step is a bijection of the running state for given input, so a change of one word always
// changes the hash; several changes cancel with the odds of 32 random bits.

#include <cstring>

#include "kernels.h"
#include "vec.h"

namespace fastres::cpu::FASTRES_ISA_NAMESPACE {
namespace {

typedef uint32_t HashVec __attribute__((vector_size(kLanes * sizeof(uint32_t))));
constexpr int kStreams = 4;
constexpr size_t kRoundBytes = kStreams * sizeof(HashVec);

inline void mix(HashVec* state, const char* bytes) {
#pragma GCC unroll 4
  for (int i = 0; i < kStreams; ++i) {
    HashVec word;
    std::memcpy(&word, bytes + i * sizeof(HashVec), sizeof(word));
    state[i] = (state[i] ^ word) * 0x9e3779b1U;
    state[i] ^= state[i] >> 15;
  }
}

}  // namespace

uint64_t hash(const void* data, size_t bytes) {
  HashVec state[kStreams] = {};
  const auto* p = static_cast<const char*>(data);
  size_t left = bytes;
  for (; left >= kRoundBytes; left -= kRoundBytes, p += kRoundBytes) mix(state, p);
  if (left > 0) {
    char tail[kRoundBytes] = {};
    std::memcpy(tail, p, left);
    mix(state, tail);
  }
  uint64_t result = bytes;
  for (const HashVec& stream : state) {
    for (int lane = 0; lane < kLanes; ++lane) {
      result = (result ^ stream[lane]) * 0x9e3779b97f4a7c15ULL;
      result ^= result >> 29;
    }
  }
  return result;
}

}  // namespace fastres::cpu::FASTRES_ISA_NAMESPACE

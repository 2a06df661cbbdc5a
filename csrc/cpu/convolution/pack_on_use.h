// A weight that the threads of one call pack together, each block right before its first use.
//
// Packed beforehand, a weight goes through the shared cache twice while nothing is computed. Here
// the plain values are fetched while the panel before is multiplied, and the packed ones are used
// while they are still near. Threads begin at different panels: by the time that one comes to
// another's, they are packed.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "plain_weight.h"

namespace fastres::cpu {

class PackOnUse {
 public:
  // Of the layouts igemm, winograd and bfloat16 into `payload`, header.payload_floats() floats.
  PackOnUse(const Microkernels& kernels, const PackedHeader& header, const PlainWeight& weight,
            float* payload);

  // Packs blocks of sixteen output channels, of the layout bfloat16 the panels that have them, or
  // waits for the thread that is packing them.
  void prepare(Range blocks);

  // The plain values of blocks of one group that nobody has begun to pack; none if somebody has.
  FloatSpan unpacked(Range blocks) const;

 private:
  enum class State : uint8_t { plain, packing, packed };

  // Where memory runs out the others must not wait for ever: they try, too.
  void pack(int64_t unit, std::atomic<State>& state);
  void pack(int64_t unit);
  Range units_of(Range blocks) const;

  const Microkernels& kernels_;
  const PackedHeader header_;
  const PlainWeight weight_;
  float* const payload_;
  const int64_t unit_blocks_;  // which are packed together
  const std::unique_ptr<std::atomic<State>[]> states_;
};

}  // namespace fastres::cpu

// Weights that change at every step: packed at each call, in parallel, into pooled memory.

#pragma once

#include <cstddef>
#include <vector>

#include "../../geometry.h"
#include "../../packed_weight.h"
#include "../microkernels.h"

namespace fastres::cpu {

// [K, C/groups, R, S] float32 of any strides.
struct WeightView {
  float* data = nullptr;
  int64_t out_channels = 0, group_in_channels = 0;
  Extent kernel;
  int64_t groups = 1;
  int64_t stride_k = 0, stride_c = 0, stride_r = 0, stride_s = 0;

  int64_t group_out_channels() const { return out_channels / groups; }
};

// Which taps of one axis to pack, in which order.
using Taps = std::vector<int64_t>;

// The header of a packed weight of these taps; `transposed` convolves gradients of the output, and
// `winograd`, of a dense 3x3 and all taps, does so by F(2x2, 3x3).
PackedHeader header_of(const WeightView& weight, bool transposed, const Taps& rows,
                       const Taps& cols, bool winograd = false);

// Packs those taps into header_of(...).payload_floats() floats.
void pack_weight(const Microkernels& kernels, const WeightView& weight, bool transposed,
                 const Taps& rows, const Taps& cols, float* target, bool winograd = false);

// All taps in order.
Taps all_taps(int64_t count);

// The other way round, for all taps and not transposed: writes the weight's elements.
void unpack_weight(const Microkernels& kernels, const float* packed, const WeightView& weight);

}  // namespace fastres::cpu

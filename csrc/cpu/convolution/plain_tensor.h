// From a weight tensor to what is packed.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../../checks.h"
#include "plain_weight.h"

namespace fastres::cpu {

// Of a weight [K, C/groups, R, S]; `algorithm` is "direct" or "winograd".
PackedHeader header_of(const std::vector<int64_t>& shape, int64_t groups,
                       const std::string& algorithm);

// A weight [K, C/groups, R, S] of any storage dtype and strides, and its scale, checked.
struct CheckedWeight {
  PackedHeader header;
  PlainWeight plain;
  std::vector<Tensor> kept;  // what points into
};

// `name` is the weight's in messages.
CheckedWeight checked_weight(const Tensor& weight, const std::optional<Tensor>& scale,
                             int64_t groups, const std::string& algorithm, const char* op,
                             const char* name = "weight");

}  // namespace fastres::cpu

// Which kernel a convolution gets, for explain() and for who packs weights.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "microkernels.h"
#include "runtime/isa.h"

namespace fastres::cpu {

// A convolution with dense channels_last input and output, without a shortcut.
struct ConvShape {
  std::vector<int64_t> x;       // [N, C, H, W]
  std::vector<int64_t> weight;  // [K, C/groups, R, S]
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups = 1;
  StorageType type = StorageType::float32;  // of the tensors
};

// What conv_bn_act computes it by or, `live`, live_conv_bn_act, on the selected instruction set and
// by that algorithm. Throws std::runtime_error where the convolution has no output.
FASTRES_PUBLIC std::string kernel_choice(const ConvShape& shape, const std::string& algorithm,
                                         bool live);

// Whether bfloat16 tensors are multiplied as such on the selected instruction set.
FASTRES_PUBLIC bool multiplies_bfloat16();

// Whether a dense 3x3 of so many input channels is better convolved directly than by Winograd's
// algorithm, on the selected instruction set.
FASTRES_PUBLIC bool prefers_direct(int64_t in_channels, StorageType type);

}  // namespace fastres::cpu

// Sums of products over pixels, which gradients of weights are made of, on matrix tiles.

#pragma once

#include <cstdint>
#include <functional>

#include "../convolution/conv_layer.h"
#include "../training_kernels.h"

namespace fastres::cpu {

// Whether tiles are faster for so many input and output channels, and taps.
bool prefers_split_sums(const Microkernels& kernels, int64_t channels, int64_t out_channels,
                        int64_t taps);

// Adds the products of all taps for all blocks of `tile`, however many, of which the last one's
// channels beyond `out_channels` are zero. Some of its pixels go to `otherwise`, one tap at a time,
// where a value has no bfloat16 parts. Meanwhile fetches `upcoming`.
void add_split_sums(const Microkernels& kernels, const WgradTile& tile, int64_t out_channels,
                    const Upcoming& upcoming,
                    const std::function<void(const WgradTile&)>& otherwise);

}  // namespace fastres::cpu

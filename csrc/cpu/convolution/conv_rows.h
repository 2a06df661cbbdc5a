// One convolution over a band of rows on one thread: what conv_bn_act and grouped_bottleneck are
// both made of.

#pragma once

#include <span>

#include "conv_layer.h"

namespace fastres::cpu {

// The layer with the weights of `panels` in the order that its kernel takes them in, where that is
// not the packed one: in this thread's scratch memory, until the next such layer. For a layer
// without, conv_rows() does it at each call.
ConvLayer arranged(const Microkernels& kernels, ConvLayer layer, Range panels);

// Computes `panels` of all output pixels of the band.
void conv_rows(const Microkernels& kernels, const ConvLayer& layer, ConvBand band, Range panels);

// The same of several bands of one shape, for a layer on register tiles: each panel's weights come
// from beyond the level-2 cache once for all of them.
void conv_bands(const Microkernels& kernels, const ConvLayer& layer,
                std::span<const ConvBand> bands, Range panels);

}  // namespace fastres::cpu

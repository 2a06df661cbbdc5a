// A dense 3x3 with stride 1 over a band of rows by Winograd's F(2x2, 3x3): 16 multiplications where
// the direct convolution has 36, with rounding errors of the same size.

#pragma once

#include <span>

#include "conv_layer.h"
#include "plain_weight.h"

namespace fastres::cpu {

// Whether a dense 3x3 that may be computed so takes less time directly: matrix tiles do enough
// multiplications, but the weights of many channels, in three parts, leave the cache no room. On
// two threads of a Xeon, 28x28, batch 4, a direct convolution takes 0.9 of Winograd's time with 96
// channels, and 1.03 with 192, before their products were on tiles, too (conv_winograd.h).
bool prefers_direct(const Microkernels& kernels, int64_t channels);

// The layer's weights are packed, or `plain`, of which each panel is transformed right before use;
// `plain.data` is null for none.
void winograd_rows(const Microkernels& kernels, const ConvLayer& layer, const PlainWeight& plain,
                   ConvBand band, Range panels);

// The rows, of bands of this width, that a panel's weights are read once for.
int64_t winograd_rows_in_cache(const Microkernels& kernels, const ConvLayer& layer, int64_t pixels);

// The same of several bands of one width, such as small images, of no more rows together than that;
// an odd number of rows counts as the next even one.
void winograd_bands(const Microkernels& kernels, const ConvLayer& layer, const PlainWeight& plain,
                    std::span<const ConvBand> bands, Range panels);

// One position's product, as a layer; without its weights and shift.
ConvLayer winograd_product(ConvLayer layer);

// The parts of both, for callers with buffers of their own: the products of tiles by some of the
// sixteen positions of packed panels, and the outputs that those products make.
void winograd_products(const Microkernels& kernels, const ConvLayer& layer,
                       const WinogradTiles& input, Range positions, Range panels,
                       const WinogradTiles& products);
void winograd_outputs(const Microkernels& kernels, const ConvLayer& layer,
                      const WinogradTiles& products, const ConvBand& band, Range channels);

}  // namespace fastres::cpu

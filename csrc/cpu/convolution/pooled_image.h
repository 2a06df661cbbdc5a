// An activation that nobody outside of an operator sees.

#pragma once

#include <algorithm>

#include "../runtime/buffer_pool.h"
#include "image.h"

namespace fastres::cpu {

// Dense channels_last pixels in a buffer of the pool.
class PooledImage {
 public:
  PooledImage(int64_t batch, int64_t channels, Extent size, StorageType type)
      : memory_(std::max<int64_t>(
            1, ceil_div(batch * channels * size.h * size.w * cpu::element_bytes(type),
                        int64_t{sizeof(float)}))),
        image_{memory_.data(),
               type,
               batch,
               channels,
               size.h,
               size.w,
               size.h * size.w * channels,
               1,
               size.w * channels,
               channels} {}

  const Image& image() const { return image_; }

 private:
  const PooledFloats memory_;
  const Image image_;
};

}  // namespace fastres::cpu

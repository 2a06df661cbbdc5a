// Uninitialised tensors whose memory is reused from call to call.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "../../checks.h"
#include "buffer_pool.h"

namespace fastres::cpu {

// Of [k, c, r, s]; channels last or not.
inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes, bool channels_last) {
  const int64_t c = sizes[1], r = sizes[2], s = sizes[3];
  if (channels_last) return {r * s * c, 1, s * c, c};
  return {c * r * s, r * s, s, 1};
}

// Dense channels_last [n, c, size.h, size.w].
inline Tensor empty_nhwc(int64_t n, int64_t c, Extent size, ScalarType type, const Tensor& like) {
  const int64_t bytes = n * c * size.h * size.w * (type == ScalarType::Float ? 4 : 2);
  if (bytes < static_cast<int64_t>(kPooledBytes)) {
    return torch::stable::empty({n, c, size.h, size.w}, type, std::nullopt, like.device(),
                                std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  }
  const std::vector<int64_t> sizes{n, c, size.h, size.w};
  void* buffer = acquire_buffer(static_cast<size_t>(bytes));
  check_buffer(buffer, bytes);
  return torch::stable::from_blob(buffer, sizes, dense_strides(sizes, true), like.device(), type,
                                  &release_buffer);
}

// Float32 [size].
inline Tensor empty_vector(int64_t size, const Tensor& like) {
  return torch::stable::empty({size}, ScalarType::Float, std::nullopt, like.device());
}

// Room for packed weights of so many bytes.
inline Tensor empty_packed(int64_t bytes, const Tensor& like) {
  if (bytes < static_cast<int64_t>(kPooledBytes)) {
    return torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, like.device());
  }
  void* buffer = acquire_constant(static_cast<size_t>(bytes));
  check_buffer(buffer, bytes);
  return torch::stable::from_blob(buffer, {bytes}, {1}, like.device(), ScalarType::Byte,
                                  &release_constant);
}

// Float32, of the weight's own strides where it is dense. Of a 16-bit weight it is converted and
// freed at once.
inline Tensor empty_weight_gradient(const Tensor& weight) {
  const int64_t bytes = weight.numel() * int64_t{sizeof(float)};
  std::vector<int64_t> sizes, strides;
  for (int64_t i = 0; i < weight.dim(); ++i) {
    sizes.push_back(weight.size(i));
    strides.push_back(weight.stride(i));
  }
  const bool dense =
      strides == dense_strides(sizes, false) || strides == dense_strides(sizes, true);
  const bool stays = weight.scalar_type() == ScalarType::Float;
  if (bytes < static_cast<int64_t>(kPooledBytes) || !dense || !stays) {
    return torch::stable::empty_like(torch::stable::to(weight, ScalarType::Float));
  }
  void* buffer = acquire_gradient_buffer(static_cast<size_t>(bytes));
  check_buffer(buffer, bytes);
  return torch::stable::from_blob(buffer, sizes, strides, weight.device(), ScalarType::Float,
                                  &release_gradient_buffer);
}

}  // namespace fastres::cpu

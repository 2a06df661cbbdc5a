// From tensors to what the kernels see.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../../checks.h"
#include "image.h"

namespace fastres::cpu {

inline StorageType storage_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
      return StorageType::bfloat16;
    case ScalarType::Half:
      return StorageType::float16;
    default:
      return StorageType::float32;
  }
}

inline Image image_of(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()),
          storage_type(t),
          t.size(0),
          t.size(1),
          t.size(2),
          t.size(3),
          t.stride(0),
          t.stride(1),
          t.stride(2),
          t.stride(3)};
}

// Without the dispatcher, which takes a microsecond and more, where there is nothing to do.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}
inline Tensor as_float(const Tensor& tensor) {
  const bool is_float = tensor.scalar_type() == ScalarType::Float;
  return is_float ? tensor : torch::stable::to(tensor, ScalarType::Float);
}

inline Activation activation_of(const std::string& name, const char* op) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "relu6") return Activation::relu6;
  if (name == "silu") return Activation::silu;
  if (name == "leaky_relu") return Activation::leaky_relu;
  fail(op, ": act must be none, relu, relu6, silu or leaky_relu, got '", name, "'");
}

}  // namespace fastres::cpu

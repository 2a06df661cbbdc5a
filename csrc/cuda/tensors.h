// From tensors to pointers: devices, layouts and alignment.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "../checks.h"
#include "operators.h"

namespace fastres::cuda {

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      return Dtype::f32;
  }
}

inline Activation activation_of(const std::string& name, const char* op) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "relu6") return Activation::relu6;
  if (name == "silu") return Activation::silu;
  if (name == "leaky_relu") return Activation::leaky_relu;
  fail(op, ": act must be none, relu, relu6, silu or leaky_relu, got '", name, "'");
}

inline std::string device_string(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "another device";
}

// An operator's tensors as the kernels want them; copies live as long as this.
class Operands {
 public:
  // All others have to be on the device of `first`, the argument called `name`.
  Operands(const Tensor& first, const char* op, const char* name)
      : device_(first.device()), op_(op), first_name_(name), first_(device_string(first)) {
    check(first.is_cuda(), op, ": ", name, " must be on a CUDA device like the other tensors");
  }

  void check_device(const Tensor& tensor, const char* name) const {
    check(tensor.device() == device_, op_, ": ", name, " must be on the same device as ",
          first_name_, ", got ", device_string(tensor), ", expected ", first_);
  }

  // Dense [N, H, W, C] whose chunks are aligned.
  const void* image(const Tensor& tensor, const char* name) {
    check_device(tensor, name);
    return aligned(
        torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast));
  }
  const void* image(const std::optional<Tensor>& tensor, const char* name) {
    return tensor.has_value() ? image(*tensor, name) : nullptr;
  }

  // A float32 value for each channel.
  const float* vector(const Tensor& values, int64_t channels, const char* name) {
    check_device(values, name);
    check_shift(values, channels, op_, name);
    return static_cast<const float*>(aligned(torch::stable::contiguous(values)));
  }
  const float* vector(const std::optional<Tensor>& values, int64_t channels, const char* name) {
    return values.has_value() ? vector(*values, channels, name) : nullptr;
  }

  const void* bytes(const Tensor& tensor, const char* name) {
    check_device(tensor, name);
    return aligned(tensor);
  }

  // A dense new tensor [n, c, size.h, size.w], channels_last.
  Tensor empty_image(int64_t n, int64_t c, Extent size, ScalarType type) const {
    return torch::stable::empty({n, c, size.h, size.w}, type, std::nullopt, device_, std::nullopt,
                                torch::headeronly::MemoryFormat::ChannelsLast);
  }
  Tensor empty(int64_t size, ScalarType type = ScalarType::Float) const {
    return torch::stable::empty({size}, type, std::nullopt, device_);
  }

 private:
  const void* aligned(const Tensor& tensor) {
    kept_.push_back(tensor);
    if (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kChunkBytes != 0) {
      kept_.back() = torch::stable::clone(tensor);
    }
    return kept_.back().const_data_ptr();
  }

  torch::stable::Device device_;
  const char* op_;
  const char* first_name_;
  std::string first_;
  std::vector<Tensor> kept_;
};

inline WeightTensor weight_tensor(const Tensor& weight) {
  return {weight.const_data_ptr(), dtype_of(weight), weight.stride(0),
          weight.stride(1),        weight.stride(2), weight.stride(3)};
}

inline float* floats_of(const Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<float*>(tensor.mutable_data_ptr()) : nullptr;
}

// The packed weight's pointer. Its header is on the GPU, and reading it would wait: what can be
// told without is its size, which is that of no other convolution's layout.
inline const void* packed_weight(Operands& operands, const Tensor& packed, const ConvGeometry& g,
                                 const char* op, const char* name) {
  check(g.groups > 0 && g.in_channels % g.groups == 0, op,
        ": groups must be positive and divide the ", g.in_channels, " input channels, got ",
        g.groups);
  check(g.out_channels % g.groups == 0, op, ": groups=", g.groups, " does not divide the ",
        g.out_channels, " output channels");
  check(packed.dim() == 1 && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous(), op,
        ": ", name, " must be what pack_conv_weight returned (1-D uint8), got ",
        torch::headeronly::toString(packed.scalar_type()), " of shape ", ShapeOf{packed});
  const int64_t expected =
      static_cast<int64_t>(sizeof(PackedHeader)) + krsc_header(g).payload_bytes();
  check(packed.numel() == expected, op, ": ", name, " has ", packed.numel(), " bytes, expected ",
        expected, " for a weight [", g.out_channels, ", ", g.in_channels / g.groups, ", ",
        g.kernel.h, ", ", g.kernel.w,
        "] packed on a CUDA device: it is of another convolution, or was packed for another "
        "backend; pack the weight again on this device");
  return operands.bytes(packed, name);
}

}  // namespace fastres::cuda

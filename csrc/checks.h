// Argument checks and output shapes, shared by all backends.
//
// A failed check throws std::invalid_argument, which Python sees as ValueError. Messages say which
// argument, what came and what was expected.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "geometry.h"
#include "packed_weight.h"

namespace fastres {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

// A tensor's shape in a message: text only where a check failed.
struct ShapeOf {
  const Tensor& tensor;
};

inline std::ostream& operator<<(std::ostream& text, const ShapeOf& shape) {
  text << "[";
  for (int64_t d = 0; d < shape.tensor.dim(); ++d) {
    text << (d == 0 ? "" : ", ") << shape.tensor.size(d);
  }
  return text << "]";
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

inline void check_cpu(const Tensor& tensor, const char* op, const char* name) {
  check(tensor.is_cpu(), op, ": ", name, " must be on the CPU like x");
}

inline bool is_storage_type(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

inline void check_input(const Tensor& x, const char* op) {
  check(x.dim() == 4, op, ": x must be 4-D [N, C, H, W], got shape ", ShapeOf{x});
  check(is_storage_type(x.scalar_type()), op,
        ": x must be float32, bfloat16 or float16 (float64 goes to fastres.reference), got ",
        torch::headeronly::toString(x.scalar_type()));
}

// Of strides, paddings and the like: their sums and products stay within 64 bits.
constexpr int64_t kLargestArgument = (int64_t{1} << 31) - 1;

inline Extent positive_pair(const std::vector<int64_t>& values, const char* op, const char* name) {
  check(values.size() == 2, op, ": ", name, " must be two positive integers, got ", values.size(),
        " values");
  check(values[0] > 0 && values[1] > 0, op, ": ", name, " must be two positive integers, got ",
        values[0], ", ", values[1]);
  check(std::max(values[0], values[1]) <= kLargestArgument, op, ": ", name, " must be at most ",
        kLargestArgument, ", got ", values[0], ", ", values[1]);
  return {values[0], values[1]};
}

inline Padding padding_of(const std::vector<int64_t>& values, const char* op) {
  check(values.size() == 4, op, ": padding must be (top, bottom, left, right), got ", values.size(),
        " values");
  for (const int64_t value : values) {
    check(value >= 0, op, ": padding must not be negative, got ", value);
    check(value <= kLargestArgument, op, ": padding must be at most ", kLargestArgument, ", got ",
          value);
  }
  return {values[0], values[1], values[2], values[3]};
}

// The header of a packed weight of so many bytes.
inline PackedHeader packed_header(const void* packed, int64_t bytes, const char* op,
                                  const char* name) {
  check(bytes >= static_cast<int64_t>(sizeof(PackedHeader)), op, ": ", name,
        " must be what pack_conv_weight returned, got ", bytes, " bytes");
  const PackedHeader header = read_packed_header(packed);
  check(header.magic == PackedHeader::kMagic && header.version == PackedHeader::kVersion, op, ": ",
        name, " does not start with the header that pack_conv_weight writes");
  check(header.layout != PackedLayout::plain, op, ": ", name,
        " was packed by the reference backend: pack the weight again under this one");
  check(header.layout != PackedLayout::krsc, op, ": ", name,
        " was packed on a CUDA device: pack the weight again on the CPU");
  check(header.out_channels > 0 && header.group_in_channels > 0 && header.kernel_h > 0 &&
            header.kernel_w > 0 && header.groups > 0 && header.out_channels % header.groups == 0 &&
            bytes == static_cast<int64_t>(sizeof(PackedHeader)) + header.payload_bytes(),
        op, ": ", name, " is damaged: its header does not fit its ", bytes, " bytes");
  return header;
}

// What pack_conv_weight may have returned, for any backend.
inline void check_packed_tensor(const Tensor& packed, const char* op, const char* name) {
  check(packed.dim() == 1 && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
            packed.numel() >= static_cast<int64_t>(sizeof(PackedHeader)),
        op, ": ", name, " must be what pack_conv_weight returned (1-D uint8), got ",
        torch::headeronly::toString(packed.scalar_type()), " of shape ", ShapeOf{packed});
}

inline PackedHeader packed_header(const Tensor& packed, const char* op, const char* name) {
  check_packed_tensor(packed, op, name);
  return packed_header(packed.const_data_ptr(), packed.numel(), op, name);
}

// What the caller says the packed weight is.
struct ExpectedWeight {
  int64_t in_channels;
  Extent kernel;
  int64_t groups;
};

inline void check_packed(const PackedHeader& header, const ExpectedWeight& expected, const char* op,
                         const char* name) {
  check(expected.groups > 0 && expected.in_channels % expected.groups == 0, op,
        ": groups must be positive and divide the ", expected.in_channels, " input channels, got ",
        expected.groups);
  check(header.groups == expected.groups && header.kernel_h == expected.kernel.h &&
            header.kernel_w == expected.kernel.w &&
            header.group_in_channels * expected.groups == expected.in_channels,
        op, ": ", name, " is of another convolution: it holds a ", header.kernel_h, "x",
        header.kernel_w, " kernel with ", header.group_in_channels, " channels a group and ",
        header.groups, " groups, expected ", expected.kernel.h, "x", expected.kernel.w, " with ",
        expected.in_channels / expected.groups, " and ", expected.groups);
}

// Winograd's transforms are of a stride-1 convolution.
inline void check_algorithm(const PackedHeader& header, Extent stride, Extent dilation,
                            const char* op, const char* name) {
  const bool unit = stride.h == 1 && stride.w == 1 && dilation.h == 1 && dilation.w == 1;
  check(header.layout != PackedLayout::winograd || unit, op, ": ", name,
        " was packed with algorithm='winograd', which needs stride and dilation 1, got stride (",
        stride.h, ", ", stride.w, ") and dilation (", dilation.h, ", ", dilation.w, ")");
}

inline void check_shift(const Tensor& shift, int64_t out_channels, const char* op,
                        const char* name) {
  check(shift.dim() == 1 && shift.size(0) == out_channels, op, ": ", name, " must have shape [",
        out_channels, "], got ", ShapeOf{shift});
  check(shift.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32, got ",
        torch::headeronly::toString(shift.scalar_type()));
}

inline void check_residual(const Tensor& residual, const Tensor& x, const ConvGeometry& g,
                           const char* op) {
  check(residual.dim() == 4 && residual.size(0) == g.batch && residual.size(1) == g.out_channels &&
            residual.size(2) == g.out.h && residual.size(3) == g.out.w,
        op, ": residual must have the output's shape [", g.batch, ", ", g.out_channels, ", ",
        g.out.h, ", ", g.out.w, "], got ", ShapeOf{residual});
  check(residual.scalar_type() == x.scalar_type(), op, ": residual must have x's dtype ",
        torch::headeronly::toString(x.scalar_type()), ", got ",
        torch::headeronly::toString(residual.scalar_type()));
}

// Which algorithm a weight is to be convolved by.
inline void check_algorithm_name(const Tensor& weight, int64_t groups, const std::string& algorithm,
                                 const char* op) {
  check(algorithm == "direct" || algorithm == "winograd", op,
        ": algorithm must be 'direct' or 'winograd', got '", algorithm, "'");
  check(algorithm == "direct" || (weight.size(2) == 3 && weight.size(3) == 3 && groups == 1), op,
        ": algorithm 'winograd' needs a dense 3x3 weight, got shape ", ShapeOf{weight}, " with ",
        groups, " groups");
}

// pack_conv_weight's algorithm for bfloat16 inputs: direct, with rounded weights.
constexpr const char* kBfloat16Algorithm = "bfloat16";

inline void check_suits_bfloat16(const Tensor& weight, int64_t groups, const char* op) {
  const int64_t out = weight.size(0) / groups, in = weight.size(1);
  check(out % kBfloat16Channels == 0 && in % kBfloat16Channels == 0, op,
        ": algorithm 'bfloat16' needs multiples of 32 channels in each group, got shape ",
        ShapeOf{weight}, " with ", groups, " groups");
}

// The weight and the groups of pack_conv_weight, or of an operator that packs.
inline void check_weight_to_pack(const Tensor& weight, int64_t groups, const std::string& algorithm,
                                 const char* op, const char* name = "weight") {
  check(weight.dim() == 4, op, ": ", name, " must be 4-D [K, C/groups, R, S], got shape ",
        ShapeOf{weight});
  for (int64_t d = 0; d < 4; ++d) {
    check(weight.size(d) > 0 && weight.size(d) <= std::numeric_limits<int32_t>::max(), op, ": ",
          name, " must have positive sizes, got ", ShapeOf{weight});
  }
  check(groups > 0 && weight.size(0) % groups == 0, op, ": groups must be positive and divide the ",
        weight.size(0), " output channels, got ", groups);
  check(is_storage_type(weight.scalar_type()), op, ": ", name,
        " must be float32, bfloat16 or float16 (float64 goes to fastres.reference), got ",
        torch::headeronly::toString(weight.scalar_type()));
  check_algorithm_name(weight, groups, algorithm, op);
}

// Which algorithm a training convolution of that weight is to use.
inline void check_training_algorithm(const Tensor& weight, const std::string& algorithm,
                                     const ConvGeometry& g, const char* op) {
  check_algorithm_name(weight, g.groups, algorithm, op);
  const bool unit = g.stride.h == 1 && g.stride.w == 1 && g.dilation.h == 1 && g.dilation.w == 1;
  check(algorithm != "winograd" || unit, op,
        ": algorithm 'winograd' needs stride and dilation 1, got stride (", g.stride.h, ", ",
        g.stride.w, ") and dilation (", g.dilation.h, ", ", g.dilation.w, ")");
}

// A training convolution's weight, for x and groups.
inline void check_weight(const Tensor& weight, const Tensor& x, int64_t groups, const char* op) {
  check(weight.dim() == 4 && weight.numel() > 0, op,
        ": weight must be 4-D [K, C/groups, R, S], no size 0, got shape ", ShapeOf{weight});
  check(is_storage_type(weight.scalar_type()), op,
        ": weight must be float32, bfloat16 or float16, got ",
        torch::headeronly::toString(weight.scalar_type()));
  check(groups > 0 && weight.size(0) % groups == 0, op, ": groups must be positive and divide the ",
        weight.size(0), " output channels, got ", groups);
  check(weight.size(1) * groups == x.size(1), op, ": weight must have ", x.size(1), "/", groups,
        " input channels a group, those of x over groups, got shape ", ShapeOf{weight});
}

// A tensor of the shape and dtype of a convolution's output.
inline void check_output_like(const Tensor& tensor, const Tensor& x, const ConvGeometry& g,
                              const char* op, const char* name) {
  check(tensor.dim() == 4 && tensor.size(0) == g.batch && tensor.size(1) == g.out_channels &&
            tensor.size(2) == g.out.h && tensor.size(3) == g.out.w,
        op, ": ", name, " must have the output's shape [", g.batch, ", ", g.out_channels, ", ",
        g.out.h, ", ", g.out.w, "], got ", ShapeOf{tensor});
  check(tensor.scalar_type() == x.scalar_type(), op, ": ", name, " must have x's dtype, got ",
        torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_block_end(const Tensor& y, const char* op) {
  check(y.dim() == 4, op, ": y must be 4-D [N, C, H, W], got shape ", ShapeOf{y});
  check(is_storage_type(y.scalar_type()), op,
        ": y must be float32, bfloat16 or float16 (float64 goes to fastres.reference), got ",
        torch::headeronly::toString(y.scalar_type()));
}

// A tensor of the shape and dtype of `like`, the argument called `whose`.
inline void check_like(const Tensor& tensor, const Tensor& like, const char* op, const char* name,
                       const char* whose = "y") {
  check(tensor.dim() == 4 && same_shape(tensor, like), op, ": ", name, " must have ", whose,
        "'s shape ", ShapeOf{like}, ", got ", ShapeOf{tensor});
  check(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " must have ", whose,
        "'s dtype ", torch::headeronly::toString(like.scalar_type()), ", got ",
        torch::headeronly::toString(tensor.scalar_type()));
}

// What conv_stats_backward is told of an input that affine_add_act has activated.
inline void check_activated(const std::optional<Tensor>& in_residual,
                            const std::optional<Tensor>& activated,
                            const std::optional<Tensor>& in_mean, const Tensor& x, const char* op) {
  check(in_residual.has_value() == activated.has_value(), op,
        ": in_residual and activated must be given together or not at all");
  if (!activated.has_value()) return;
  check(in_mean.has_value(), op, ": in_residual needs in_mean, in_scale and in_bias");
  check_like(*in_residual, x, op, "in_residual", "x");
  check_like(*activated, x, op, "activated", "x");
}

inline int64_t output_size(int64_t in, int64_t kernel, int64_t stride, int64_t dilation,
                           int64_t padding, const char* op, const char* axis) {
  const int64_t covered = dilation * (kernel - 1) + 1;
  check(in > 0 && in + padding >= covered, op, ": x is too small: its padded ", axis, " is ",
        in + padding, ", the kernel covers ", covered);
  return (in + padding - covered) / stride + 1;
}

// Fills in the output size; everything else must be set.
inline void set_output_size(ConvGeometry& g, const char* op) {
  g.out.h = output_size(g.in.h, g.kernel.h, g.stride.h, g.dilation.h,
                        g.padding.top + g.padding.bottom, op, "height");
  g.out.w = output_size(g.in.w, g.kernel.w, g.stride.w, g.dilation.w,
                        g.padding.left + g.padding.right, op, "width");
}

}  // namespace fastres

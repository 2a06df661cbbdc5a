// pack_conv_weight on the CPU: the layouts that packed_weight.h describes.

#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <string>

#include "allocate.h"
#include "tensor_image.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "pack_conv_weight";

PackedHeader header_of(const Tensor& weight, int64_t groups, const std::string& algorithm) {
  check(weight.dim() == 4, kOp, ": weight must be 4-D [K, C/groups, R, S], got shape ",
        shape_string(weight));
  for (int64_t d = 0; d < 4; ++d) {
    check(weight.size(d) > 0 && weight.size(d) <= std::numeric_limits<int32_t>::max(), kOp,
          ": weight must have positive sizes, got ", shape_string(weight));
  }
  check(groups > 0 && weight.size(0) % groups == 0, kOp,
        ": groups must be positive and divide the ", weight.size(0), " output channels, got ",
        groups);
  check(is_storage_type(weight.scalar_type()), kOp,
        ": weight must be float32, bfloat16 or float16 (float64 goes to fastres.reference), got ",
        torch::headeronly::toString(weight.scalar_type()));
  PackedHeader header;
  header.out_channels = static_cast<int32_t>(weight.size(0));
  header.group_in_channels = static_cast<int32_t>(weight.size(1));
  header.kernel_h = static_cast<int32_t>(weight.size(2));
  header.kernel_w = static_cast<int32_t>(weight.size(3));
  header.groups = static_cast<int32_t>(groups);
  if (algorithm == "winograd") {
    check(weight.size(2) == 3 && weight.size(3) == 3 && groups == 1, kOp,
          ": algorithm 'winograd' needs a dense 3x3 weight, got shape ", shape_string(weight),
          " with ", groups, " groups");
    header.layout = PackedLayout::winograd;
    return header;
  }
  check(algorithm == "direct", kOp, ": algorithm must be 'direct' or 'winograd', got '", algorithm,
        "'");
  header.layout = uses_lanes_layout(header.group_out_channels(), weight.size(1), groups)
                      ? PackedLayout::lanes
                      : PackedLayout::igemm;
  return header;
}

Tensor float_vector(const Tensor& values, int64_t count, const char* name) {
  check_cpu(values, kOp, name);
  check(values.dim() == 1 && values.size(0) == count, kOp, ": ", name, " must have shape [", count,
        "], got ", shape_string(values));
  return torch::stable::contiguous(torch::stable::to(values, ScalarType::Float));
}

// Writes `lane` of one block of output channels: [R][S][Cg] values, 16 apart.
void pack_lane(const float* weight, const PackedHeader& h, float scale, float* lane) {
  const int64_t taps = h.taps();
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < h.group_in_channels; ++c) {
      *lane = weight[c * taps + tap] * scale;
      lane += kChannelBlock;
    }
  }
}

void pack(const float* weight, const float* scale, const PackedHeader& h, float* payload) {
  const int64_t channels =
      h.layout == PackedLayout::lanes ? h.out_channels : h.group_out_channels();
  for (int64_t k = 0; k < h.out_channels; ++k) {
    const int64_t block = k / channels * h.blocks() + k % channels / kChannelBlock;
    pack_lane(weight + k * h.group_in_channels * h.taps(), h, scale != nullptr ? scale[k] : 1.0F,
              payload + block * h.block_stride() + k % channels % kChannelBlock);
  }
}

// G g along one axis: three values, `step` apart, to four.
void transform_weight(const double* g, int64_t step, double* out, int64_t out_step) {
  const double even = (g[0] + g[2 * step]) / 2;
  const double odd = g[step] / 2;
  out[0] = g[0];
  out[out_step] = even + odd;
  out[2 * out_step] = even - odd;
  out[3 * out_step] = g[2 * step];
}

// The sixteen values of one 3x3 kernel, `position_stride` apart.
void pack_winograd_kernel(const float* kernel, double scale, float* out, int64_t position_stride) {
  double scaled[9];
  for (int i = 0; i < 9; ++i) scaled[i] = kernel[i] * scale;
  double columns[4][3];
  for (int s = 0; s < 3; ++s) transform_weight(scaled + s, 3, &columns[0][s], 3);
  for (int r = 0; r < 4; ++r) {
    double values[4];
    transform_weight(columns[r], 1, values, 1);
    for (int s = 0; s < 4; ++s) {
      out[(r * 4 + s) * position_stride] = static_cast<float>(values[s]);
    }
  }
}

void pack_winograd(const float* weight, const float* scale, const PackedHeader& h, float* payload) {
  for (int64_t k = 0; k < h.out_channels; ++k) {
    float* block = payload + k / kChannelBlock * h.block_stride() + k % kChannelBlock;
    for (int64_t c = 0; c < h.group_in_channels; ++c) {
      pack_winograd_kernel(weight + (k * h.group_in_channels + c) * 9,
                           scale != nullptr ? scale[k] : 1.0, block + c * kChannelBlock,
                           h.blocks() * h.block_stride());
    }
  }
}

Tensor pack_conv_weight(const Tensor& weight, const std::optional<Tensor>& scale, int64_t groups,
                        const std::string& algorithm) {
  const PackedHeader header = header_of(weight, groups, algorithm);
  const Tensor values = torch::stable::contiguous(torch::stable::to(weight, ScalarType::Float));
  std::optional<Tensor> factors;
  if (scale.has_value()) factors = float_vector(*scale, weight.size(0), "scale");

  const int64_t bytes = static_cast<int64_t>(sizeof(PackedHeader)) +
                        static_cast<int64_t>(sizeof(float)) * header.payload_floats();
  Tensor packed = empty_bytes(bytes, weight);
  std::memset(packed.mutable_data_ptr(), 0, static_cast<size_t>(bytes));
  auto* data = static_cast<char*>(packed.mutable_data_ptr());
  std::memcpy(data, &header, sizeof(header));
  const auto pack_layout = header.layout == PackedLayout::winograd ? pack_winograd : pack;
  pack_layout(values.const_data_ptr<float>(),
              factors.has_value() ? factors->const_data_ptr<float>() : nullptr, header,
              reinterpret_cast<float*>(data + sizeof(header)));
  return packed;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("pack_conv_weight", TORCH_BOX(&fastres::cpu::pack_conv_weight));
}

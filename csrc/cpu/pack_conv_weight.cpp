// pack_conv_weight on the CPU: the layouts that packed_weight.h describes.

#include <torch/csrc/stable/library.h>

<<<<<<< HEAD
#include <algorithm>
=======
#include <cstring>
>>>>>>> c641d38 (Pack a weight while it convolves, so that no packed copy stands beside the parameter)
#include <optional>
#include <string>

#include "allocate.h"
#include "plain_tensor.h"

namespace fastres::cpu {
namespace {

<<<<<<< HEAD
constexpr const char* kOp = "pack_conv_weight";

PackedHeader header_of(const Tensor& weight, int64_t groups, const std::string& algorithm) {
  check_weight_to_pack(weight, groups, algorithm, kOp);
  PackedHeader header;
  header.out_channels = static_cast<int32_t>(weight.size(0));
  header.group_in_channels = static_cast<int32_t>(weight.size(1));
  header.kernel_h = static_cast<int32_t>(weight.size(2));
  header.kernel_w = static_cast<int32_t>(weight.size(3));
  header.groups = static_cast<int32_t>(groups);
  if (algorithm == "winograd") {
    header.layout = PackedLayout::winograd;
    return header;
  }
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

// Where the weights of one block of sixteen output channels are.
PackSource block_source(const PackedHeader& h, const float* weight, int64_t block) {
  const bool lanes = h.layout == PackedLayout::lanes;
  const int64_t channels = lanes ? h.out_channels : h.group_out_channels();
  const int64_t group = block / h.blocks();
  const int64_t first = block % h.blocks() * kChannelBlock;
  PackSource source{};
  source.lane_stride = h.group_in_channels * h.taps();
  source.weight = weight + (group * channels + first) * source.lane_stride;
  source.lanes = std::min<int64_t>(kChannelBlock, channels - first);
  source.channels = h.group_in_channels;
  source.taps = h.taps();
  return source;
}

void pack(const float* weight, const float* scale, const PackedHeader& h, float* payload) {
  const Microkernels& kernels = selected_microkernels();
  const int64_t blocks = h.layout == PackedLayout::igemm ? h.groups * h.blocks() : h.blocks();
  const int64_t parts = std::min(thread_count(), blocks);
  parallel_parts(parts, [&](int64_t part) {
    const Range range = even_range(blocks, parts, part);
    for (int64_t block = range.begin; block < range.end; ++block) {
      PackSource source = block_source(h, weight, block);
      float factors[kChannelBlock];
      std::fill_n(factors, kChannelBlock, 1.0F);
      if (scale != nullptr) {
        const int64_t channel = (source.weight - weight) / source.lane_stride;
        std::copy_n(scale + channel, source.lanes, factors);
      }
      source.scale = factors;
      float* target = payload + block * h.block_stride();
      if (h.layout == PackedLayout::winograd) {
        kernels.pack_winograd(source, target, h.blocks() * h.block_stride());
      } else {
        kernels.pack_direct(source, target);
      }
    }
  });
}

=======
>>>>>>> c641d38 (Pack a weight while it convolves, so that no packed copy stands beside the parameter)
Tensor pack_conv_weight(const Tensor& weight, const std::optional<Tensor>& scale, int64_t groups,
                        const std::string& algorithm) {
  const CheckedWeight source = checked_weight(weight, scale, groups, algorithm, "pack_conv_weight");
  const PackedHeader& header = source.header;
  const int64_t bytes = static_cast<int64_t>(sizeof(PackedHeader)) +
                        static_cast<int64_t>(sizeof(float)) * header.payload_floats();
  Tensor packed = empty_bytes(bytes, weight);
  auto* data = static_cast<char*>(packed.mutable_data_ptr());
  std::memcpy(data, &header, sizeof(header));
  pack_payload(selected_microkernels(), header, source.plain,
               reinterpret_cast<float*>(data + sizeof(header)));
  return packed;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("pack_conv_weight", TORCH_BOX(&fastres::cpu::pack_conv_weight));
}

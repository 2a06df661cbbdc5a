// pack_conv_weight on the CPU: the layouts that packed_weight.h describes.

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <optional>
#include <string>

#include "allocate.h"
#include "plain_tensor.h"

namespace fastres::cpu {
namespace {

Tensor pack_conv_weight(const Tensor& weight, const std::optional<Tensor>& scale, int64_t groups,
                        const std::string& algorithm) {
  const CheckedWeight source = checked_weight(weight, scale, groups, algorithm, "pack_conv_weight");
  const PackedHeader& header = source.header;
  const int64_t bytes = static_cast<int64_t>(sizeof(PackedHeader)) +
                        static_cast<int64_t>(sizeof(float)) * header.payload_floats();
  Tensor packed = empty_packed(bytes, weight);
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

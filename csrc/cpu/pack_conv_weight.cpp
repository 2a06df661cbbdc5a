// pack_conv_weight on the CPU: the layouts that packed_weight.h describes.

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <optional>
#include <string>

#include "convolution/bfloat16_weight.h"
#include "convolution/plain_tensor.h"
#include "runtime/allocate.h"

namespace fastres::cpu {
namespace {

Tensor pack_conv_weight(const Tensor& weight, const std::optional<Tensor>& scale, int64_t groups,
                        const std::string& algorithm) {
  constexpr const char* kOp = "pack_conv_weight";
  const bool rounds = algorithm == kBfloat16Algorithm;
  CheckedWeight source = checked_weight(weight, scale, groups, rounds ? "direct" : algorithm, kOp);
  PackedHeader& header = source.header;
  if (rounds) {
    check_suits_bfloat16(weight, groups, kOp);
    header.layout = PackedLayout::bfloat16;
  }
  Tensor packed =
      empty_packed(static_cast<int64_t>(sizeof(PackedHeader)) + header.payload_bytes(), weight);
  auto* data = static_cast<char*>(packed.mutable_data_ptr());
  std::memcpy(data, &header, sizeof(header));
  void* payload = data + sizeof(header);
  if (rounds) {
    pack_bfloat16(selected_microkernels(), header, source.plain, static_cast<Bfloat16*>(payload));
  } else {
    pack_payload(selected_microkernels(), header, source.plain, static_cast<float*>(payload));
  }
  return packed;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("pack_conv_weight", TORCH_BOX(&fastres::cpu::pack_conv_weight));
}

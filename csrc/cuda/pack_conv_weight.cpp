// pack_conv_weight on CUDA: the layout krsc of packed_weight.h.

#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <string>

#include "executor.h"
#include "tensors.h"

namespace fastres::cuda {
namespace {

constexpr const char* kOp = "pack_conv_weight";

// `algorithm` is a hint: tensor cores convolve 3x3 directly.
Tensor pack(const Tensor& weight, const std::optional<Tensor>& scale, int64_t groups,
            const std::string& algorithm) {
  const bool rounds = algorithm == kBfloat16Algorithm;
  check_weight_to_pack(weight, groups, rounds ? "direct" : algorithm, kOp);
  if (rounds) check_suits_bfloat16(weight, groups, kOp);
  Operands operands(weight, kOp, "weight");
  ConvGeometry g;
  g.batch = 1;
  g.in_channels = weight.size(1) * groups;
  g.out_channels = weight.size(0);
  g.kernel = {weight.size(2), weight.size(3)};
  g.groups = groups;
  const float* factors = operands.vector(scale, weight.size(0), "scale");
  const PackedHeader header = krsc_header(g);
  Tensor packed = operands.empty(
      static_cast<int64_t>(sizeof(PackedHeader)) + header.payload_bytes(), ScalarType::Byte);
  TorchExecutor executor(weight);
  pack_conv_weight(executor, weight_tensor(weight), factors, g, header, packed.mutable_data_ptr());
  return packed;
}

}  // namespace
}  // namespace fastres::cuda

STABLE_TORCH_LIBRARY_IMPL(fastres, CUDA, m) {
  m.impl("pack_conv_weight", TORCH_BOX(&fastres::cuda::pack));
}

#include "plain_tensor.h"

#include "tensor_image.h"

namespace fastres::cpu {
namespace {

Tensor float_vector(const Tensor& values, int64_t count, const char* op, const char* name) {
  check_cpu(values, op, name);
  check(values.dim() == 1 && values.size(0) == count, op, ": ", name, " must have shape [", count,
        "], got ", ShapeOf{values});
  return as_contiguous(as_float(values));
}

bool is_channels_last(const Tensor& weight) {
  const int64_t c = weight.size(1), s = weight.size(3);
  return weight.stride(1) == 1 && weight.stride(3) == c && weight.stride(2) == s * c &&
         weight.stride(0) == weight.size(2) * s * c;
}

}  // namespace

PackedHeader header_of(const std::vector<int64_t>& shape, int64_t groups,
                       const std::string& algorithm) {
  PackedHeader header;
  header.out_channels = static_cast<int32_t>(shape[0]);
  header.group_in_channels = static_cast<int32_t>(shape[1]);
  header.kernel_h = static_cast<int32_t>(shape[2]);
  header.kernel_w = static_cast<int32_t>(shape[3]);
  header.groups = static_cast<int32_t>(groups);
  const bool lanes = uses_lanes_layout(header.group_out_channels(), shape[1], groups);
  header.layout = algorithm == "winograd" ? PackedLayout::winograd
                  : lanes                 ? PackedLayout::lanes
                                          : PackedLayout::igemm;
  return header;
}

CheckedWeight checked_weight(const Tensor& weight, const std::optional<Tensor>& scale,
                             int64_t groups, const std::string& algorithm, const char* op,
                             const char* name) {
  CheckedWeight result;
  check_weight_to_pack(weight, groups, algorithm, op, name);
  const std::vector<int64_t> shape{weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  result.header = header_of(shape, groups, algorithm);
  Tensor values = weight;
  result.plain.channels_last = !values.is_contiguous() && is_channels_last(values);
  if (!result.plain.channels_last) values = as_contiguous(values);
  result.plain.data = values.const_data_ptr();
  result.plain.type = storage_type(values);
  result.kept.push_back(values);
  if (scale.has_value()) {
    result.kept.push_back(float_vector(*scale, weight.size(0), op, "scale"));
    result.plain.scale = result.kept.back().const_data_ptr<float>();
  }
  return result;
}

}  // namespace fastres::cpu

#include "kernel_choice.h"

#include "convolution/conv.h"
#include "convolution/conv_winograd.h"
#include "convolution/plain_tensor.h"
#include "convolution/split_rows.h"
#include "convolution/winograd.h"

namespace fastres::cpu {
namespace {

// Whose data is not read.
Image dense_image(StorageType type, int64_t batch, int64_t channels, Extent size, float* data) {
  Image image;
  image.data = data;
  image.type = type;
  image.batch = batch;
  image.channels = channels;
  image.height = size.h;
  image.width = size.w;
  image.stride_c = 1;
  image.stride_w = channels;
  image.stride_h = size.w * channels;
  image.stride_n = size.h * image.stride_h;
  return image;
}

}  // namespace

std::string kernel_choice(const ConvShape& shape, const std::string& algorithm, bool live) {
  constexpr const char* kOp = "kernel_choice";
  float value = 0.0F;
  check(shape.x.size() == 4 && shape.weight.size() == 4, kOp, ": x and weight must have 4 sizes");
  check(shape.groups > 0, kOp, ": groups must be positive, got ", shape.groups);
  Conv conv;
  ConvGeometry& g = conv.geometry;
  g.batch = shape.x[0];
  g.in_channels = shape.x[1];
  g.in = {shape.x[2], shape.x[3]};
  g.out_channels = shape.weight[0];
  g.kernel = {shape.weight[2], shape.weight[3]};
  g.stride = positive_pair(shape.stride, kOp, "stride");
  g.dilation = positive_pair(shape.dilation, kOp, "dilation");
  g.padding = padding_of(shape.padding, kOp);
  g.groups = shape.groups;
  set_output_size(g, kOp);
  conv.layer.header = header_of(shape.weight, shape.groups, algorithm);
  if (live) set_live_layout(conv.layer, shape.type, g.batch, g.out);
  conv.layer.stride = g.stride;
  conv.layer.dilation = g.dilation;
  if (live) conv.plain.data = &value;
  conv.x = dense_image(shape.type, g.batch, g.in_channels, g.in, &value);
  conv.out = dense_image(shape.type, g.batch, g.out_channels, g.out, &value);
  return kernel_name(kernels_for(shape.type, conv.layer), conv);
}

bool multiplies_bfloat16() {
  return multiplies_bfloat16(selected_microkernels(StorageType::bfloat16));
}

bool prefers_direct(int64_t in_channels, StorageType type) {
  return prefers_direct(selected_microkernels(type), in_channels);
}

}  // namespace fastres::cpu

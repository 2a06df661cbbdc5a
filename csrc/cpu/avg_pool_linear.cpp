// avg_pool_linear on the CPU: a network's head. The averages are a few kilobytes, and the weight is
// read once.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "convolution/tensor_image.h"
#include "runtime/allocate.h"
#include "runtime/scratch.h"

namespace fastres::cpu {
namespace {

constexpr const char* kOp = "avg_pool_linear";

// Rows of the weight that all averages are multiplied with before the next ones.
constexpr int64_t kRowsAtOnce = 32;
// Channels that threads share are as many as a few cache lines hold.
constexpr int64_t kChannelsAtOnce = 64;

void check_arguments(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_input(x, kOp);
  check(x.size(2) > 0 && x.size(3) > 0, kOp, ": x must have pixels, got shape ", ShapeOf{x});
  check_cpu(weight, kOp, "weight");
  check(weight.dim() == 2 && weight.size(1) == x.size(1), kOp, ": weight must have shape [K, ",
        x.size(1), "], got ", ShapeOf{weight});
  check(weight.scalar_type() == x.scalar_type(), kOp, ": weight must have x's dtype ",
        torch::headeronly::toString(x.scalar_type()), ", got ",
        torch::headeronly::toString(weight.scalar_type()));
  if (!bias.has_value()) return;
  check_cpu(*bias, kOp, "bias");
  check(bias->dim() == 1 && bias->size(0) == weight.size(0), kOp, ": bias must have shape [",
        weight.size(0), "], got ", ShapeOf{*bias});
  check(bias->scalar_type() == x.scalar_type(), kOp, ": bias must have x's dtype ",
        torch::headeronly::toString(x.scalar_type()), ", got ",
        torch::headeronly::toString(bias->scalar_type()));
}

// Some channels' averages over an image. Rows are summed by themselves: one sum of thousands of
// values would lose digits.
void average(const Microkernels& kernels, const Image& x, int64_t n, Range channels,
             float* averages) {
  Scratch& sums = thread_scratch().sums;
  float* of_row = sums.floats(channels.size());
  std::fill_n(averages, channels.size(), 0.0F);
  for (int64_t h = 0; h < x.height; ++h) {
    const Band row = float_rows(kernels, x, n, {h, h + 1}, thread_scratch().input);
    std::fill_n(of_row, channels.size(), 0.0F);
    for (int64_t w = 0; w < x.width; ++w) {
      const float* pixel = row.data + w * row.pixel_stride + channels.begin;
      for (int64_t c = 0; c < channels.size(); ++c) of_row[c] += pixel[c];
    }
    for (int64_t c = 0; c < channels.size(); ++c) averages[c] += of_row[c];
  }
  const auto pixels = static_cast<float>(x.height * x.width);
  for (int64_t c = 0; c < channels.size(); ++c) averages[c] /= pixels;
}

// The averages of all images, [n][channels].
void average_all(const Microkernels& kernels, const Image& x, float* averages) {
  const int64_t groups = ceil_div(x.channels, kChannelsAtOnce);
  // Images that have to be loaded are loaded for all channels.
  const int64_t shares = x.is_float32_nhwc() ? std::min(groups, thread_count()) : 1;
  const int64_t parts = std::min(thread_count(), x.batch * shares);
  parallel_parts(parts, [&](int64_t part) {
    const Range mine = even_range(x.batch * shares, parts, part);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      Range channels = even_range(groups, shares, i % shares);
      channels = {channels.begin * kChannelsAtOnce,
                  std::min(channels.end * kChannelsAtOnce, x.channels)};
      average(kernels, x, i / shares, channels,
              averages + i / shares * x.channels + channels.begin);
    }
  });
}

struct Linear {
  Image weight;  // [outputs][channels], as pixels of one row
  Image bias;    // data is null for none
  const float* inputs;
  int64_t batch;
  Tensor& y;
};

// Outputs of some rows of the weight for all images.
void multiply_rows(const Microkernels& kernels, const Linear& linear, Range rows) {
  const Image& w = linear.weight;
  DotTile t{};
  t.rows = rows.size();
  t.length = w.channels;
  t.row_stride = w.channels;
  t.vector = linear.inputs;
  t.vector_stride = w.channels;
  t.vectors = linear.batch;
  t.sums_stride = linear.batch;
  const char* from = w.at(0, 0, rows.begin);
  if (w.type == StorageType::float32) {
    t.row = reinterpret_cast<const float*>(from);
  } else {
    float* widened = thread_scratch().widened.floats(rows.size() * w.channels);
    kernels.widen(from, w.type, widened, rows.size() * w.channels);
    t.row = widened;
  }
  t.sums = thread_scratch().sums.floats(rows.size() * (linear.batch + 1));
  float* bias = t.sums + rows.size() * linear.batch;
  std::fill_n(bias, rows.size(), 0.0F);
  if (linear.bias.data != nullptr) {
    kernels.widen(linear.bias.at(0, 0, rows.begin), w.type, bias, rows.size());
  }
  for (int64_t i = 0; i < rows.size() * linear.batch; ++i) t.sums[i] = bias[i / linear.batch];
  kernels.dot(t);
  float* row = thread_scratch().output.floats(rows.size());
  for (int64_t n = 0; n < linear.batch; ++n) {
    for (int64_t i = 0; i < rows.size(); ++i) row[i] = t.sums[i * linear.batch + n];
    auto* y = static_cast<char*>(const_cast<void*>(linear.y.const_data_ptr()));
    kernels.narrow(row, w.type, y + (n * w.width + rows.begin) * w.element_bytes(), rows.size());
  }
}

Image matrix_image(const Tensor& matrix, int64_t rows, int64_t columns) {
  return {const_cast<void*>(matrix.const_data_ptr()),
          storage_type(matrix),
          1,
          columns,
          1,
          rows,
          rows * columns,
          1,
          rows * columns,
          columns};
}

Tensor avg_pool_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_arguments(x, weight, bias);
  const Tensor dense_weight = as_contiguous(weight);
  std::optional<Tensor> dense_bias;
  if (bias.has_value()) dense_bias = as_contiguous(*bias);
  const Image image = image_of(x);
  const int64_t outputs = weight.size(0);
  Tensor y =
      torch::stable::empty({image.batch, outputs}, x.scalar_type(), std::nullopt, x.device());
  if (image.batch == 0 || outputs == 0) return y;
  const Microkernels& kernels = selected_microkernels();
  std::vector<float> averages(static_cast<size_t>(image.batch * image.channels));
  average_all(kernels, image, averages.data());
  Linear linear{
      matrix_image(dense_weight, outputs, image.channels), {}, averages.data(), image.batch, y};
  if (dense_bias.has_value()) linear.bias = matrix_image(*dense_bias, outputs, 1);
  const int64_t chunks = ceil_div(outputs, kRowsAtOnce);
  const int64_t parts = std::min(thread_count(), chunks);
  parallel_parts(parts, [&](int64_t part) {
    const Range mine = even_range(chunks, parts, part);
    for (int64_t chunk = mine.begin; chunk < mine.end; ++chunk) {
      const int64_t begin = chunk * kRowsAtOnce;
      multiply_rows(kernels, linear, {begin, std::min(begin + kRowsAtOnce, outputs)});
    }
  });
  return y;
}

}  // namespace
}  // namespace fastres::cpu

STABLE_TORCH_LIBRARY_IMPL(fastres, CPU, m) {
  m.impl("avg_pool_linear", TORCH_BOX(&fastres::cpu::avg_pool_linear));
}

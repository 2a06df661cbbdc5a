// A C++ program that links fastres::ops and calls the operators through torch's dispatcher, with no
// Python in the process. Compares them with ATen's convolution in float64.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdio>
#include <optional>
#include <string>

namespace {

using at::Tensor;
using OptionalTensor = const std::optional<Tensor>&;

template <class Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Tensor pack(const Tensor& weight, OptionalTensor scale, int64_t groups) {
  static const auto handle = op<Tensor(const Tensor&, OptionalTensor, int64_t, c10::string_view)>(
      "fastres::pack_conv_weight");
  return handle.call(weight, scale, groups, "direct");
}

Tensor conv_bn_act(const Tensor& x, const Tensor& packed, const Tensor& shift,
                   OptionalTensor residual, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                   at::IntArrayRef padding, int64_t groups, const char* act) {
  static const auto handle = op<Tensor(
      const Tensor&, const Tensor&, const Tensor&, OptionalTensor, at::IntArrayRef, at::IntArrayRef,
      at::IntArrayRef, at::IntArrayRef, int64_t, c10::string_view, double)>("fastres::conv_bn_act");
  return handle.call(x, packed, shift, residual, kernel_size, stride, padding, {1, 1}, groups, act,
                     0.01);
}

Tensor bottleneck(const Tensor& x, const Tensor (&packed)[3], const Tensor (&shift)[3],
                  int64_t groups) {
  static const auto handle =
      op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                const Tensor&, const Tensor&, OptionalTensor, OptionalTensor, at::IntArrayRef,
                at::IntArrayRef, int64_t, c10::string_view)>("fastres::grouped_bottleneck");
  return handle.call(x, packed[0], shift[0], packed[1], shift[1], packed[2], shift[2], std::nullopt,
                     std::nullopt, {1, 1}, {1, 1}, groups, "relu");
}

Tensor reference(const Tensor& x, const Tensor& weight, const Tensor& shift, int64_t stride,
                 int64_t padding, int64_t groups) {
  return at::conv2d(x.to(at::kDouble), weight.to(at::kDouble), shift.to(at::kDouble), stride,
                    padding, 1, groups);
}

int failures = 0;

void check(const std::string& name, bool passed) {
  std::printf("%s  %s\n", passed ? "ok    " : "FAILED", name.c_str());
  failures += passed ? 0 : 1;
}

void check_close(const std::string& name, const Tensor& out, const Tensor& expected) {
  const double error = ((out.to(at::kDouble) - expected).norm() / expected.norm()).item<double>();
  std::printf("relative error %.1e  ", error);
  check(name, out.sizes() == expected.sizes() && error < 1e-6);
}

void test_conv(int64_t channels, int64_t groups, int64_t kernel, int64_t stride) {
  const int64_t padding = kernel / 2;
  const Tensor x = at::randn({2, channels, 15, 13});
  const Tensor weight = at::randn({channels, channels / groups, kernel, kernel});
  const Tensor scale = at::rand({channels}) + 0.5;
  const Tensor shift = at::randn({channels});
  const Tensor scaled = weight * scale.view({-1, 1, 1, 1});
  const Tensor conv = reference(x, scaled, shift, stride, padding, groups);
  const Tensor residual = at::randn(conv.sizes());

  const Tensor out =
      conv_bn_act(x, pack(weight, scale, groups), shift, residual, {kernel, kernel},
                  {stride, stride}, {padding, padding, padding, padding}, groups, "relu");
  const std::string name = "conv_bn_act " + std::to_string(kernel) + "x" + std::to_string(kernel) +
                           " groups " + std::to_string(groups) + " stride " +
                           std::to_string(stride);
  check_close(name, out, at::relu(conv + residual.to(at::kDouble)));
}

void test_bottleneck(int64_t groups) {
  const Tensor x = at::randn({1, 64, 14, 14});
  const Tensor weight[3] = {at::randn({32, 64, 1, 1}), at::randn({32, 32 / groups, 3, 3}),
                            at::randn({64, 32, 1, 1})};
  const Tensor shift[3] = {at::randn({32}), at::randn({32}), at::randn({64})};
  const Tensor packed[3] = {pack(weight[0], std::nullopt, 1), pack(weight[1], std::nullopt, groups),
                            pack(weight[2], std::nullopt, 1)};

  Tensor expected = at::relu(reference(x, weight[0], shift[0], 1, 0, 1));
  expected = at::relu(reference(expected, weight[1], shift[1], 1, 1, groups));
  expected = reference(expected, weight[2], shift[2], 1, 0, 1) + x.to(at::kDouble);
  check_close("grouped_bottleneck groups " + std::to_string(groups),
              bottleneck(x, packed, shift, groups), at::relu(expected));
}

void test_bad_input() {
  const Tensor x = at::randn({1, 8, 5, 5});
  const Tensor packed = pack(at::randn({8, 8, 1, 1}), std::nullopt, 1);
  std::string message;
  try {
    conv_bn_act(x, packed, at::zeros({8}), std::nullopt, {1, 1}, {0, 1}, {0, 0, 0, 0}, 1, "none");
  } catch (const std::exception& error) {
    message = error.what();
  }
  check("a zero stride throws and is named", message.find("stride") != std::string::npos);
}

}  // namespace

int main() {
  at::manual_seed(0);
  test_conv(32, 1, 1, 1);
  test_conv(32, 1, 3, 2);
  test_conv(64, 16, 3, 1);
  test_conv(32, 32, 3, 2);
  test_bottleneck(8);
  test_bad_input();
  return failures == 0 ? 0 : 1;
}

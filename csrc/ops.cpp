// Every operator of fastres and nothing else: start reading here.
//
// Kernels register themselves beside their code: csrc/cpu/<op>.cpp for the CPU, csrc/cuda/<op>.cu
// for CUDA. fastres/reference.py is the same list in plain PyTorch, fastres/ops.py adds the fake
// kernels, autograd and autocast.
//
// Names: N batch, C input channels, H W input size, K output channels, R S kernel size.
//   weight   [K, C/groups, R, S]
//   packed   opaque 1-D uint8 tensor made by pack_conv_weight, see packed_weight.h
//   shift    [K] float32, added after the convolution
//   padding  (top, bottom, left, right)
//   act      "none", "relu", "relu6", "silu" or "leaky_relu" (whose slope is act_slope)

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastres, m) {
  // weight * scale[:, None, None, None] in the layout that the backend's kernels read. algorithm is
  // "direct", or "winograd" for a dense 3x3 that is used with stride and dilation 1.
  m.def(
      "pack_conv_weight(Tensor weight, Tensor? scale, int groups, str algorithm='direct') "
      "-> Tensor");

  // act(conv(x) + shift + residual), in one pass over the output.
  m.def(
      "conv_bn_act(Tensor x, Tensor packed, Tensor shift, Tensor? residual, int[2] kernel_size, "
      "int[2] stride, int[4] padding, int[2] dilation, int groups, str act, float act_slope) "
      "-> Tensor");

  // A whole bottleneck: 1x1, 3x3 with stride, dilation and groups, 1x1, plus the shortcut (x, or a
  // 1x1 of x with the same stride), an activation after each.
  m.def(
      "grouped_bottleneck(Tensor x, Tensor packed1, Tensor shift1, Tensor packed2, Tensor shift2, "
      "Tensor packed3, Tensor shift3, Tensor? packed_down, Tensor? shift_down, int[2] stride, "
      "int[2] dilation, int groups, str act) -> Tensor");

  // One hash per tensor, of its elements: tells whether parameters changed since they were packed.
  m.def("content_hash(Tensor[] tensors) -> int[]");
}

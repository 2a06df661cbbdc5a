"""The operator schemas, as csrc/ops.cpp declares them.

The native library registers its own. These serve a build without one, where the operators are
defined from Python; the tests compare the two.
"""

SCHEMAS: dict[str, str] = {
    "pack_conv_weight": (
        "pack_conv_weight(Tensor weight, Tensor? scale, int groups, str algorithm='direct') "
        "-> Tensor"
    ),
    "conv_bn_act": (
        "conv_bn_act(Tensor x, Tensor packed, Tensor shift, Tensor? residual, int[2] kernel_size, "
        "int[2] stride, int[4] padding, int[2] dilation, int groups, str act, float act_slope) "
        "-> Tensor"
    ),
    "grouped_bottleneck": (
        "grouped_bottleneck(Tensor x, Tensor packed1, Tensor shift1, Tensor packed2, "
        "Tensor shift2, Tensor packed3, Tensor shift3, Tensor? packed_down, Tensor? shift_down, "
        "int[2] stride, int[2] dilation, int groups, str act) -> Tensor"
    ),
    "content_hash": "content_hash(Tensor[] tensors) -> int[]",
}

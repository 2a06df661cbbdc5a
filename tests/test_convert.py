"""Keras models, converted: the same outputs to 1e-5."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from nets import ops
from torch import nn

import fastres
from fastres.convert import from_keras
from fastres.models import KerasResNeXt

EPSILON = 1.001e-5


def _randomise(model):
    """Weights that give every layer something to get wrong, and activations of size 1."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _randomise(layer)
            continue
        values = []
        for variable in layer.weights:
            shape, name = tuple(variable.shape), variable.name
            if "variance" in name or "gamma" in name:
                values.append(generator.uniform(0.5, 1.5, shape))
            elif "kernel" in name:
                fan_in = max(int(np.prod(shape[:-1])), 1)
                values.append(generator.normal(0, (2 / fan_in) ** 0.5, shape))
            else:
                values.append(generator.normal(0, 0.1, shape))
        if values:
            layer.set_weights(values)
    return model


def _agree(model, size=(16, 12), channels=8, atol=1e-5):
    """Converts and compares; returns the converted model."""
    _randomise(model)
    converted = from_keras(model)
    images = np.random.default_rng(1).normal(size=(2, *size, channels)).astype("float32")
    expected = np.asarray(keras.ops.convert_to_numpy(model(images, training=False)))
    with torch.no_grad():
        out = converted(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    if out.dim() == 4:
        out = out.permute(0, 2, 3, 1)
    assert out.shape == expected.shape
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=atol)
    return converted


# ---- ResNeXt -------------------------------------------------------------------------------------


def _sliced_by_index(x, start, stop):
    return x[:, :, :, start:stop]


def _sliced_by_lambda(x, start, stop):
    return L.Lambda(lambda z: z[:, :, :, start:stop])(x)


def _block(x, filters, stride, groups, conv_shortcut, name, cut):
    shortcut = x
    if conv_shortcut:
        shortcut = L.Conv2D(2 * filters, 1, strides=stride, name=name + "_0_conv")(x)
        shortcut = L.BatchNormalization(epsilon=EPSILON, name=name + "_0_bn")(shortcut)
    x = L.Conv2D(filters, 1, name=name + "_1_conv")(x)
    x = L.BatchNormalization(epsilon=EPSILON, name=name + "_1_bn")(x)
    x = L.Activation("relu", name=name + "_1_relu")(x)
    x = L.ZeroPadding2D(((1, 1), (1, 1)), name=name + "_2_pad")(x)
    width = filters // groups
    parts = [
        L.Conv2D(width, 3, strides=stride, name=f"{name}_2_conv_{g}")(
            cut(x, g * width, (g + 1) * width)
        )
        for g in range(groups)
    ]
    x = L.Concatenate(name=name + "_2_concat")(parts)
    x = L.BatchNormalization(epsilon=EPSILON, name=name + "_2_bn")(x)
    x = L.Activation("relu", name=name + "_2_relu")(x)
    x = L.Conv2D(2 * filters, 1, name=name + "_3_conv")(x)
    x = L.BatchNormalization(epsilon=EPSILON, name=name + "_3_bn")(x)
    x = L.Add(name=name + "_add")([shortcut, x])
    return L.Activation("relu", name=name + "_out")(x)


def keras_resnext(depths, groups, classes, cut=_sliced_by_index, size=(64, 48)):
    """A ResNeXt with Keras's conventions, one convolution per group."""
    image = L.Input((*size, 3))
    x = L.ZeroPadding2D(((3, 3), (3, 3)), name="conv1_pad")(image)
    x = L.Conv2D(64, 7, strides=2, name="conv1_conv")(x)
    x = L.BatchNormalization(epsilon=EPSILON, name="conv1_bn")(x)
    x = L.Activation("relu", name="conv1_relu")(x)
    x = L.ZeroPadding2D(((1, 1), (1, 1)), name="pool1_pad")(x)
    x = L.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            name = f"conv{stage + 2}_block{index + 1}"
            x = _block(x, 128 << stage, stride, groups, index == 0, name, cut)
    x = L.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.Model(image, L.Dense(classes, activation="softmax", name="predictions")(x))


@pytest.mark.parametrize("cut", [_sliced_by_index, _sliced_by_lambda])
def test_resnext(cut):
    converted = _agree(keras_resnext((1, 2, 1, 1), 4, 10, cut), (64, 48), 3)
    assert ops(converted) == {"conv_bn_act": 1, "grouped_bottleneck": 5}
    grouped = [m for m in converted.modules() if isinstance(m, nn.Conv2d) and m.groups == 4]
    assert len(grouped) == 5  # one for each four
    assert converted.get_submodule("conv2_block1_2_concat").bias is not None


def test_resnext50_with_32_groups():
    converted = _agree(keras_resnext((3, 4, 6, 3), 32, 1000), (64, 48), 3)
    assert ops(converted) == {"conv_bn_act": 1, "grouped_bottleneck": 16}
    ours = KerasResNeXt((3, 4, 6, 3))
    assert sum(p.numel() for p in converted.parameters()) == sum(
        p.numel() for p in ours.parameters()
    )


def test_a_converted_model_trains():
    converted = from_keras(_randomise(keras_resnext((1, 1, 1, 1), 4, 2))).train()
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.01)
    x, target = torch.randn(4, 3, 64, 48), torch.tensor([0, 1, 0, 1])
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.nll_loss(converted(x).clamp_min(1e-6).log(), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    norm = converted.get_submodule("conv1_bn")
    assert norm.momentum == pytest.approx(0.01)
    assert norm.eps == EPSILON


# ---- layers --------------------------------------------------------------------------------------

LAYERS = {
    "same, stride 2, odd and even sizes": lambda: L.Conv2D(6, 3, strides=2, padding="same"),
    "same, even kernel": lambda: L.Conv2D(6, 4, padding="same", activation="relu"),
    "grouped": lambda: L.Conv2D(16, 3, groups=4, use_bias=False),
    "dilated": lambda: L.Conv2D(5, 3, dilation_rate=2, padding="same"),
    "depthwise": lambda: L.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
    "pad": lambda: L.ZeroPadding2D(((1, 2), (0, 3))),
    "norm without scale": lambda: L.BatchNormalization(scale=False),
    "norm without center": lambda: L.BatchNormalization(center=False),
    "max": lambda: L.MaxPooling2D(3, strides=2, padding="same"),
    "average": lambda: L.AveragePooling2D(2),
    "relu6": lambda: L.ReLU(max_value=6.0),
    "leaky relu": lambda: L.ReLU(negative_slope=0.2),
    "silu": lambda: L.Activation("silu"),
    "softmax": lambda: L.Activation("softmax"),
    "softmax layer": L.Softmax,
    "rescaling": lambda: L.Rescaling(1 / 127.5, offset=-1.0),
    "dropout": lambda: L.Dropout(0.5),
    "global max": L.GlobalMaxPooling2D,
    "global average, kept": lambda: L.GlobalAveragePooling2D(keepdims=True),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer):
    _agree(keras.Sequential([L.Input((15, 12, 8)), LAYERS[layer]()]), (15, 12))


def test_flattened_images_keep_keras_order():
    model = keras.Sequential(
        [L.Input((5, 4, 8)), L.Flatten(), L.Dense(7, activation="tanh"), L.BatchNormalization()]
    )
    _agree(model, (5, 4))


def test_models_in_models_and_layers_called_twice():
    inner = keras.Sequential([L.Input((9, 9, 8)), L.Conv2D(8, 3, padding="same"), L.ReLU()])
    image = L.Input((9, 9, 8))
    conv = L.Conv2D(8, 3, padding="same", name="shared")
    model = keras.Model(image, L.Add()([conv(inner(conv(image))), image]))
    converted = _agree(model, (9, 9))
    assert sum(isinstance(m, nn.Conv2d) for m in converted.modules()) == 2


@pytest.mark.parametrize("name", ["ResNet50", "ResNet50V2", "DenseNet121"])
def test_networks_of_keras_applications(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=10)
    converted = _agree(model, (64, 64), 3)
    assert ops(converted)["conv_bn_act"] > 0


def test_slices_that_leave_channels_out_are_not_joined():
    image = L.Input((6, 6, 8))
    parts = [L.Conv2D(2, 3)(image[..., 2 * g : 2 * g + 2]) for g in range(3)]
    converted = _agree(keras.Model(image, L.Concatenate()(parts)), (6, 6))
    assert sum(isinstance(m, nn.Conv2d) for m in converted.modules()) == 3


def _model_with(make):
    image = L.Input((8, 8, 4))
    return keras.Model(image, make(image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (L.LayerNormalization(name="odd"), "layer 'odd': LayerNormalization has no"),
        (L.Activation("elu", name="odd"), "layer 'odd': activation 'elu', expected"),
        (L.Dense(3, name="odd"), "'odd': Dense of an input with 4 dimensions"),
        (L.Lambda(lambda z: z * 2, name="odd"), "'odd': a Lambda, expected one that"),
        (lambda x: x[:, 1:], "an index .*, expected a slice of an image's channels"),
        (L.BatchNormalization(axis=1, name="odd"), "'odd': axis=1 of a BatchNorm"),
        (
            L.AveragePooling2D(3, padding="same", name="odd"),
            "'odd': padding='same' of an average pool",
        ),
    ],
)
def test_what_has_no_counterpart_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        from_keras(_model_with(make))


def test_other_things_are_no_keras_models():
    with pytest.raises(TypeError, match="from_keras: got ReLU, expected a built Sequential"):
        from_keras(nn.ReLU())
    a, b = L.Input((4, 4, 3)), L.Input((4, 4, 3))
    two = keras.Model([a, b], L.Add()([a, b]))
    with pytest.raises(ValueError, match="model has 2 inputs, expected 1"):
        from_keras(two)
    image = L.Input((None, None, 3))
    sizeless = keras.Model(image, L.Conv2D(3, 3, strides=2, padding="same")(image))
    with pytest.raises(ValueError, match="padding='same' with a stride depends on the input's"):
        from_keras(sizeless)


def test_the_result_is_accelerated_and_restorable():
    converted = _agree(keras.Sequential([L.Input((8, 8, 8)), L.Conv2D(4, 3), L.ReLU()]), (8, 8))
    assert ops(converted) == {"conv_bn_act": 1}
    assert fastres.restore(converted) is converted

"""Inception-v3 of the TensorFlow graph of 2015-12-05: the feature network of FID.

Convolution, normalisation and ReLU throughout, the normalisation folded into kernel and bias
(by `inception_weights`), in float32 with full precision of the
products on every device.  It is not the Inception-v3 of torchvision: the poolings of the
branches leave padding out of their means, the last block takes a maximum, and 1008 classes
come out.

Two rearrangements, exact in exact arithmetic, make it faster.  The 1x1 convolutions that read
the same input are one matrix product.  And where a branch averages and then convolves with a
1x1 kernel, it convolves first: the two commute, and there are fewer channels to average.

Sources: Szegedy et al. 2015, *Rethinking the Inception Architecture*; Heusel et al. 2017 (FID).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from edm_jax.typing import Array

SIZE = 299
NUM_FEATURES = 2048
NUM_LOGITS = 1008
Weights = tuple[Array, Array]  # kernel (h, w, in, out) and bias (out,)


class _Weights(nn.Module):
    """Kernel and bias of one convolution, under its name."""

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> Weights:
        """Returns: kernel (h, w, in, out), bias (out,)."""
        kernel = self.param("kernel", nn.initializers.he_normal(), self.shape, jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:], jnp.float32)


def _conv(x: Array, weights: Weights, stride: int = 1, padding: str = "VALID") -> Array:
    """ReLU of a convolution; "SAME" with stride 1 is padding by half the kernel."""
    kernel, bias = weights
    # XLA for CPU takes three times as long without padding as with it (JAX 0.10.2).
    crop = stride == 1 and padding == "VALID"
    y = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME" if crop else padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if crop:
        rows, columns = (n // 2 for n in kernel.shape[:2])
        y = y[:, rows : y.shape[1] - rows, columns : y.shape[2] - columns]
    return nn.relu(y + bias[None, None, None])


def _pointwise(x: Array, kernel: Array) -> Array:
    """A 1x1 convolution as the matrix product it is."""
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _three(x: Array, axis: int, stride: int) -> list[Array]:
    """First, second and third of every ``stride``-th three neighbours along an axis."""
    last = (x.shape[axis] - 3) // stride * stride
    return [lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(3)]


def _max_pool(x: Array, stride: int = 2, padding: int = 0) -> Array:
    """3x3 maxima, by rows and then by columns: on CPUs five times as fast as a window."""
    if padding:
        x = _padded(x, -jnp.inf)
    for axis in (1, 2):
        x = functools.reduce(jnp.maximum, _three(x, axis, stride))
    return x


def _average_pool(x: Array) -> Array:
    """3x3 means with stride 1, of those pixels only that lie in the image."""
    rows, columns = (np.convolve(np.ones(n), np.ones(3), "same") for n in x.shape[1:3])
    share = 1 / np.outer(rows, columns)
    x = _padded(x, 0)
    for axis in (1, 2):
        x = functools.reduce(jnp.add, _three(x, axis, 1))
    return x * jnp.asarray(share[None, :, :, None], x.dtype)


def _padded(x: Array, value: float) -> Array:
    """One more pixel on each side of the image."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


class _Block(nn.Module):
    """What the mixed blocks share: named weights and the branches' entries."""

    def weights(self, name: str, features: int, in_channels: int, size: tuple[int, int]) -> Weights:
        return _Weights((*size, in_channels, features), name=name)()

    def entries(self, x: Array, features: Mapping[str, int], pool: int = 0) -> list[Array]:
        """1x1 convolutions of one input by name, and `branch_pool` of ``pool`` features last."""
        named = dict(features) | ({"branch_pool": pool} if pool else {})
        weights = [self.weights(k, n, x.shape[-1], (1, 1)) for k, n in named.items()]
        y = _pointwise(x, jnp.concatenate([kernel for kernel, _ in weights], axis=-1))
        parts = jnp.split(y, np.cumsum(list(named.values()))[:-1].tolist(), axis=-1)
        if pool:
            parts[-1] = _average_pool(parts[-1])
        biases = (bias[None, None, None] for _, bias in weights)
        return [nn.relu(part + bias) for part, bias in zip(parts, biases, strict=True)]

    def conv(
        self, x: Array, name: str, features: int, size: tuple[int, int], stride: int = 1
    ) -> Array:
        weights = self.weights(name, features, x.shape[-1], size)
        return _conv(x, weights, stride, "VALID" if stride == 2 else "SAME")


class Conv(nn.Module):
    """A convolution of the stem."""

    features: int
    size: int = 3
    stride: int = 1
    padding: str = "VALID"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, H, W, in)`` -> ``(B, H', W', features)``."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)
        if self.size == 1:
            return nn.relu(_pointwise(x, kernel) + bias[None, None, None])
        return _conv(x, (kernel, bias), self.stride, self.padding)


class Mixed35(_Block):
    """Mixed_5b to 5d, on 35x35 pixels."""

    pool: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, 35, 35, in)`` -> ``(B, 35, 35, 224 + pool)``."""
        entries = {"branch1x1": 64, "branch5x5_1": 48, "branch3x3dbl_1": 64}
        one, five, three, pooled = self.entries(x, entries, self.pool)
        five = self.conv(five, "branch5x5_2", 64, (5, 5))
        three = self.conv(three, "branch3x3dbl_2", 96, (3, 3))
        three = self.conv(three, "branch3x3dbl_3", 96, (3, 3))
        return jnp.concatenate([one, five, three, pooled], axis=-1)


class Reduction35(_Block):
    """Mixed_6a: from 35x35 to 17x17 pixels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, 35, 35, 288)`` -> ``(B, 17, 17, 768)``."""
        (double,) = self.entries(x, {"branch3x3dbl_1": 64})
        double = self.conv(double, "branch3x3dbl_2", 96, (3, 3))
        double = self.conv(double, "branch3x3dbl_3", 96, (3, 3), stride=2)
        single = self.conv(x, "branch3x3", 384, (3, 3), stride=2)
        return jnp.concatenate([single, double, _max_pool(x)], axis=-1)


class Mixed17(_Block):
    """Mixed_6b to 6e, on 17x17 pixels; ``width`` channels between the 7-tap kernels."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, 17, 17, 768)`` -> ``(B, 17, 17, 768)``."""
        c, row, column = self.width, (1, 7), (7, 1)
        entries = {"branch1x1": 192, "branch7x7_1": c, "branch7x7dbl_1": c}
        one, single, double, pooled = self.entries(x, entries, 192)
        single = self.conv(single, "branch7x7_2", c, row)
        single = self.conv(single, "branch7x7_3", 192, column)
        double = self.conv(double, "branch7x7dbl_2", c, column)
        double = self.conv(double, "branch7x7dbl_3", c, row)
        double = self.conv(double, "branch7x7dbl_4", c, column)
        double = self.conv(double, "branch7x7dbl_5", 192, row)
        return jnp.concatenate([one, single, double, pooled], axis=-1)


class Reduction17(_Block):
    """Mixed_7a: from 17x17 to 8x8 pixels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, 17, 17, 768)`` -> ``(B, 8, 8, 1280)``."""
        three, seven = self.entries(x, {"branch3x3_1": 192, "branch7x7x3_1": 192})
        three = self.conv(three, "branch3x3_2", 320, (3, 3), stride=2)
        seven = self.conv(seven, "branch7x7x3_2", 192, (1, 7))
        seven = self.conv(seven, "branch7x7x3_3", 192, (7, 1))
        seven = self.conv(seven, "branch7x7x3_4", 192, (3, 3), stride=2)
        return jnp.concatenate([three, seven, _max_pool(x)], axis=-1)


class Mixed8(_Block):
    """Mixed_7b and 7c, on 8x8 pixels; the last takes the maximum in its pooling branch."""

    maximum: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, 8, 8, in)`` -> ``(B, 8, 8, 2048)``."""
        entries = {"branch1x1": 320, "branch3x3_1": 384, "branch3x3dbl_1": 448}
        one, single, double, *pooled = self.entries(x, entries, 0 if self.maximum else 192)
        if self.maximum:
            pooled = self.entries(_max_pool(x, stride=1, padding=1), {"branch_pool": 192})
        double = self.conv(double, "branch3x3dbl_2", 384, (3, 3))
        parts = [one]
        for branch, names in ((single, "branch3x3_2"), (double, "branch3x3dbl_3")):
            parts.append(self.conv(branch, names + "a", 384, (1, 3)))
            parts.append(self.conv(branch, names + "b", 384, (3, 1)))
        return jnp.concatenate([*parts, *pooled], axis=-1)


class InceptionV3(nn.Module):
    """The whole network."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Features and logits of prepared images.

        Args:
          x: ``(B, 299, 299, 3)`` in [-1, 1], see `preprocess`.

        Returns:
          ``(B, 2048)`` features, and ``(B, 1008)`` logits *without* the bias of the last
          layer, which are those of the Inception score.  The bias is ``params["fc"]["bias"]``.
        """
        x = Conv(32, stride=2, name="Conv2d_1a_3x3")(x)
        x = Conv(32, name="Conv2d_2a_3x3")(x)
        x = _max_pool(Conv(64, padding="SAME", name="Conv2d_2b_3x3")(x))
        x = Conv(80, size=1, name="Conv2d_3b_1x1")(x)
        x = _max_pool(Conv(192, name="Conv2d_4a_3x3")(x))
        for letter, pool in zip("bcd", (32, 64, 64), strict=True):
            x = Mixed35(pool, name=f"Mixed_5{letter}")(x)
        x = Reduction35(name="Mixed_6a")(x)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = Mixed17(width, name=f"Mixed_6{letter}")(x)
        x = Reduction17(name="Mixed_7a")(x)
        x = Mixed8(name="Mixed_7b")(x)
        x = Mixed8(maximum=True, name="Mixed_7c")(x)
        features = x.mean(axis=(1, 2))
        kernel, _ = _Weights((1, 1, NUM_FEATURES, NUM_LOGITS), name="fc")()
        return features, features @ kernel[0, 0]


def _tf1_taps(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper neighbours and the weight of the upper, in the float32 of TensorFlow 1."""
    at = np.arange(SIZE, dtype=np.float32) * np.float32(size / SIZE)
    low = np.minimum(np.floor(at).astype(np.int32), size - 1)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def resize_tf1(images: Array) -> Array:
    """Bilinear to 299x299 as TensorFlow 1 did it: pixel j is read at ``j * in / 299``.

    There is no half-pixel offset, the last row and column are repeated beyond the edge, and
    nothing is averaged when an image shrinks.  Where FID programs differ is mostly here.

    Args:
      images: ``(B, H, W, C)`` float32.

    Returns:
      ``(B, 299, 299, C)`` float32, in the range of the input.
    """
    for axis in (1, 2):
        low, high, weight = _tf1_taps(images.shape[axis])
        shape = [1] * 4
        shape[axis] = SIZE
        below = jnp.take(images, low, axis=axis)
        above = jnp.take(images, high, axis=axis)
        images = below + (above - below) * jnp.asarray(weight.reshape(shape))
    return images


def preprocess(images: Array) -> Array:
    """uint8 ``(B, H, W, 3)`` -> ``(B, 299, 299, 3)`` float32: resized, then ``(v - 128) / 128``."""
    return (resize_tf1(images.astype(jnp.float32)) - 128) / 128


@jax.jit
def features_and_logits(params: Mapping[str, object], images: Array) -> tuple[Array, Array]:
    """What FID and the Inception score need of uint8 images.

    Args:
      params: of `InceptionV3`.
      images: ``(B, H, W, 3)`` uint8.

    Returns:
      ``(B, 2048)`` features and ``(B, 1008)`` logits without bias, float32.
    """
    with jax.default_matmul_precision("highest"):  # never bfloat16 or TF32
        return InceptionV3().apply({"params": params}, preprocess(images))

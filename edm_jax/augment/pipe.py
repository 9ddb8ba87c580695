"""Non-leaking augmentation (EDM section F.2), on device, inside the training step.

Three pure functions: `sample_params` draws how each image is changed, `apply_augment`
changes it, `augment_labels` tells the network.  The network gets the labels as a
conditioning input and zeros when it generates, so that it never generates an augmented
image.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from edm_jax.augment.drawing import (
    COLOUR,
    TRANSFORMS,
    AugmentParams,
    AugmentPipe,
    check_shape,
    sample_params,
)
from edm_jax.augment.warp import affine_warp, reflect
from edm_jax.typing import Array, ArrayLike, Key

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

_GEOMETRIC = TRANSFORMS[4:8]


def augment_labels(params: AugmentParams, shape: tuple[int, ...], pipe: AugmentPipe) -> Array:
    """What the network is told: the unscaled draws; all zeros = unmodified.

    Args:
      params: of B images.
      shape: ``(B, H, W, C)`` of the images.
      pipe: whose enabled transformations have columns.

    Returns:
      ``(B, K)`` float32, K = ``pipe.label_dim``.
    """
    batch, height, width = check_shape(shape, pipe)
    turn = params.rotate_int
    limit = jnp.array([width, height]) * pipe.translate_int_max

    def circle(angle: ArrayLike) -> list[Array]:
        return [jnp.cos(angle) - 1, jnp.sin(angle)]

    columns = {
        "xflip": lambda: [params.xflip],
        "yflip": lambda: [params.yflip],
        "rotate_int": lambda: [(turn == 1) | (turn == 2), (turn == 2) | (turn == 3)],
        "translate_int": lambda: [params.translate_int[:, i] / limit[i] for i in (0, 1)],
        "scale": lambda: [params.scale_w],
        "rotate_frac": lambda: circle(params.rotate_angle),
        "aniso": lambda: [
            params.aniso_w * jnp.cos(params.aniso_angle),
            params.aniso_w * jnp.sin(params.aniso_angle),
        ],
        "translate_frac": lambda: [params.translate_w[:, 0], params.translate_w[:, 1]],
        "brightness": lambda: [params.brightness_w],
        "contrast": lambda: [params.contrast_w],
        "lumaflip": lambda: [params.lumaflip],
        "hue": lambda: circle(params.hue_angle),
        "saturation": lambda: [params.saturation_w],
    }
    labels = [column for name in pipe.enabled for column in columns[name]()]
    if not labels:
        return jnp.zeros((batch, 0), jnp.float32)
    return jnp.stack([jnp.asarray(c).astype(jnp.float32) for c in labels], axis=1)


def geometric_matrix(params: AugmentParams, shape: tuple[int, ...], pipe: AugmentPipe) -> Array:
    """Output position to input position of the four geometric transformations.

        G = S(1/s) R(rot) R(-r) S(1/q, q) R(r) T(-shift),  s = 2^(std w_s), q = 2^(std w_an)

    Acts on ``(x, y, 1)`` in pixels from the centre, x to the right, y down; those that
    are not enabled are left out.

    Returns:
      ``(B, 3, 3)`` float32.
    """
    batch, height, width = check_shape(shape, pipe)
    # Written out: products of 2x2 matrices would need a precision of their own on TPUs.
    a, b, c, d = jnp.ones(batch), jnp.zeros(batch), jnp.zeros(batch), jnp.ones(batch)
    if pipe.scale:
        shrink = jnp.exp2(-pipe.scale_std * params.scale_w)
        a, d = shrink, shrink
    if pipe.rotate_frac:
        cos, sin = jnp.cos(params.rotate_angle), jnp.sin(params.rotate_angle)
        a, b, c, d = a * cos, -a * sin, d * sin, d * cos
    if pipe.aniso:
        cos, sin = jnp.cos(params.aniso_angle), jnp.sin(params.aniso_angle)
        q = jnp.exp2(pipe.aniso_std * params.aniso_w)
        # R(-r) S(1/q, q) R(r) is symmetric: [[e, f], [f, g]].
        e, g = cos * cos / q + sin * sin * q, sin * sin / q + cos * cos * q
        f = cos * sin * (q - 1 / q)
        a, b, c, d = a * e + b * f, a * f + b * g, c * e + d * f, c * f + d * g
    u, v = jnp.zeros(batch), jnp.zeros(batch)
    if pipe.translate_frac:
        x = -pipe.translate_frac_std * width * params.translate_w[:, 0]
        y = -pipe.translate_frac_std * height * params.translate_w[:, 1]
        u, v = a * x + b * y, c * x + d * y
    zero, one = jnp.zeros(batch), jnp.ones(batch)
    rows = [jnp.stack(row, axis=1) for row in ([a, b, u], [c, d, v], [zero, zero, one])]
    return jnp.stack(rows, axis=1).astype(jnp.float32)


def colour_matrix(params: AugmentParams, pipe: AugmentPipe) -> Array:
    """The five changes of colour as one affine map of ``(r, g, b, 1)``.

    In this order: offset, contrast factor, reflection and rotation about the grey axis
    v = (1, 1, 1) / sqrt(3), saturation factor of what is orthogonal to v.

    Returns:
      ``(B, 4, 4)`` float32.
    """
    batch = jnp.shape(params.brightness_w)[0]
    linear = jnp.broadcast_to(jnp.eye(3), (batch, 3, 3))
    offset = jnp.zeros((batch, 3))
    grey = jnp.full((3, 3), 1 / 3)[None]  # v v^T
    eye = jnp.eye(3)[None]

    def compose(matrix: Array) -> tuple[Array, Array]:
        return _einsum("bij,bjk->bik", matrix, linear), _einsum("bij,bj->bi", matrix, offset)

    def column(w: ArrayLike) -> Array:
        return jnp.asarray(w, jnp.float32)[:, None, None]

    if pipe.brightness:
        offset = offset + pipe.brightness_std * column(params.brightness_w)[:, 0]
    if pipe.contrast:
        linear, offset = compose(eye * jnp.exp2(pipe.contrast_std * column(params.contrast_w)))
    if pipe.lumaflip:
        linear, offset = compose(eye - 2 * grey * column(params.lumaflip))
    if pipe.hue:
        angle = column(params.hue_angle)
        cross = jnp.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])[None] / math.sqrt(3)
        linear, offset = compose(
            grey + (eye - grey) * jnp.cos(angle) + cross * jnp.sin(angle)  # Rodrigues
        )
    corner = jnp.ones((batch, 1, 1))
    if pipe.saturation:
        # The published matrix scales its homogeneous entry too; no image depends on it.
        corner = factor = jnp.exp2(pipe.saturation_std * column(params.saturation_w))
        linear, offset = compose(grey + (eye - grey) * factor)
    top = jnp.concatenate([linear, offset[:, :, None]], axis=2)
    bottom = jnp.concatenate([jnp.zeros((batch, 1, 3)), corner], axis=2)
    return jnp.concatenate([top, bottom], axis=1)


def apply_augment(
    images: Array, params: AugmentParams, pipe: AugmentPipe, *, method: str = "auto"
) -> Array:
    """Change every image of a batch as its parameters say.

    As soon as one geometric transformation is enabled all images are resampled, also
    those that are not moved (they come back to within 1e-5).

    Args:
      images: ``(B, H, W, C)`` float, in [-1, 1]; C = 1 or 3 if a colour is enabled.
      params: of B images.
      pipe: what is enabled, and the constants.
      method: how to sample, see `edm_jax.augment.warp.affine_warp`.

    Returns:
      ``(B, H, W, C)`` of the same dtype; computed in float32.

    Raises:
      ValueError: for images of another type or shape, or quarter turns of oblong images.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating point in [-1, 1], got {images.dtype}; uint8 images "
            "become images / 127.5 - 1"
        )
    batch, height, width = check_shape(images.shape, pipe)
    if jnp.shape(params.xflip) != (batch,):
        raise ValueError(
            f"parameters of {jnp.shape(params.xflip)} images for a batch of {batch}; draw them "
            "with sample_params for the same shape"
        )
    x = images.astype(jnp.float32)

    def choose(condition: Array, yes: Array, no: Array) -> Array:
        return jnp.where(jnp.asarray(condition, bool)[:, None, None, None], yes, no)

    if pipe.xflip:
        x = choose(params.xflip, x[:, :, ::-1], x)
    if pipe.yflip:
        x = choose(params.yflip, x[:, ::-1], x)
    if pipe.rotate_int:
        turn = params.rotate_int
        x = choose((turn == 1) | (turn == 2), x[:, :, ::-1], x)
        x = choose((turn == 2) | (turn == 3), x[:, ::-1], x)
        x = choose((turn == 1) | (turn == 3), jnp.swapaxes(x, 1, 2), x)
    if pipe.translate_int:
        shift = jnp.asarray(params.translate_int)
        column = reflect(jnp.arange(width)[None] - shift[:, :1], width)
        row = reflect(jnp.arange(height)[None] + shift[:, 1:], height)  # y counts upwards here
        x = jnp.take_along_axis(x, column[:, None, :, None], axis=2)
        x = jnp.take_along_axis(x, row[:, :, None, None], axis=1)
    if any(getattr(pipe, name) for name in _GEOMETRIC):
        x = affine_warp(x, geometric_matrix(params, x.shape, pipe), method=method)
    if any(getattr(pipe, name) for name in COLOUR):
        x = _apply_colour(x, colour_matrix(params, pipe))
    return x.astype(images.dtype)


def _apply_colour(images: Array, matrix: Array) -> Array:
    linear, offset = matrix[:, :3, :3], matrix[:, :3, 3]
    if images.shape[3] == 1:
        # A grey image: all three colours in, their mean out.
        linear = jnp.mean(linear, axis=1).sum(axis=1)[:, None, None]
        offset = jnp.mean(offset, axis=1)[:, None]
    return _einsum("bij,bhwj->bhwi", linear, images) + offset[:, None, None, :]


def augment(key: Key, images: Array, pipe: AugmentPipe) -> tuple[Array, Array]:
    """Augment a batch with fresh parameters.

    Args:
      key: ``(B,)`` keys, or one; see `sample_params`.
      images: ``(B, H, W, C)`` float, in [-1, 1].
      pipe: what is drawn.

    Returns:
      ``(B, H, W, C)`` images and ``(B, K)`` float32 labels.
    """
    params = sample_params(key, images.shape, pipe)
    return apply_augment(images, params, pipe), augment_labels(params, images.shape, pipe)

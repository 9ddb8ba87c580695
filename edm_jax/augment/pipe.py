"""Non-leaking augmentation (EDM section F.2), on device, inside the training step.

Three pure functions: `sample_params` draws how each image is changed, `apply_augment`
changes it, `augment_labels` tells the network.  The network gets the labels as a
conditioning input and zeros when it generates, so that it never generates an augmented
image.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from edm_jax.augment.warp import affine_warp, reflect
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike, Key

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

# In the order of execution and of the labels.
TRANSFORMS = (
    "xflip", "yflip", "rotate_int", "translate_int",
    "scale", "rotate_frac", "aniso", "translate_frac",
    "brightness", "contrast", "lumaflip", "hue", "saturation",
)  # fmt: skip
_GEOMETRIC = TRANSFORMS[4:8]
_COLOUR = TRANSFORMS[8:]
_LABEL_COLUMNS = (1, 1, 2, 2, 1, 2, 2, 2, 1, 1, 1, 2, 1)


@dataclasses.dataclass(frozen=True)
class AugmentPipe:
    """Which transformations are drawn, how often and how strong.

    Each is kept for an image with probability ``min(1, multiplier * p)``.  One with
    multiplier 0 does not exist: no arithmetic, no label columns.

    Attributes:
      p: probability that multiplies all multipliers, in [0, 1].
      xflip, yflip: mirror left-right, up-down, half of the time they are kept.
      rotate_int: quarter turns.
      translate_int: shift by whole pixels, reflecting at the edge.
      scale, rotate_frac, aniso, translate_frac: isotropic scaling, rotation by any
        angle, stretching along any axis, shift by any amount.
      brightness, contrast, lumaflip, hue, saturation: changes of colour.
      translate_int_max: largest whole-pixel shift, as a fraction of the image.
      scale_std, aniso_std: of log2 of the factor.
      rotate_frac_max, hue_max: largest angle, in units of pi.
      aniso_rotate_prob: how often the stretched axis is not horizontal.
      translate_frac_std: of the shift, as a fraction of the image.
      brightness_std: of the offset, in units of the image range [-1, 1].
      contrast_std, saturation_std: of log2 of the factor.
    """

    p: float = 1.0
    xflip: float = 0.0
    yflip: float = 0.0
    rotate_int: float = 0.0
    translate_int: float = 0.0
    scale: float = 0.0
    rotate_frac: float = 0.0
    aniso: float = 0.0
    translate_frac: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    lumaflip: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    # Defaults of the published program.
    translate_int_max: float = 0.125
    scale_std: float = 0.2
    rotate_frac_max: float = 1.0
    aniso_std: float = 0.2
    aniso_rotate_prob: float = 0.5
    translate_frac_std: float = 0.125
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1.0
    saturation_std: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            top = 1 if field.name in ("p", "aniso_rotate_prob") else math.inf
            if not (0 <= value <= top and math.isfinite(value)):
                limit = "in [0, 1]" if top == 1 else "finite and not negative"
                raise ValueError(f"{field.name} must be {limit}, got {value}")
        if self.translate_int and not self.translate_int_max:
            raise ValueError(
                "translate_int_max must be positive with translate_int on (labels are "
                "divided by it); set translate_int=0 to turn it off"
            )

    @property
    def enabled(self) -> tuple[str, ...]:
        """Transformations with a multiplier above 0, in order."""
        return tuple(name for name in TRANSFORMS if getattr(self, name) > 0)

    @property
    def label_dim(self) -> int:
        """Number of label columns: ``augment_dim`` of the network."""
        columns = dict(zip(TRANSFORMS, _LABEL_COLUMNS, strict=True))
        return sum(columns[name] for name in self.enabled)


# The published training setting: nine label columns; CIFAR-10 has p = 0.12, the 64x64
# data sets p = 0.15.  Images are mirrored with probability 1/2 whatever p is, hence 1e8.
EDM_AUGMENT = AugmentPipe(
    p=0.12, xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1
)


@pytree_dataclass
class AugmentParams:
    """How each image of a batch is changed; 0 everywhere is "not at all".

    Attributes:
      xflip, yflip, lumaflip: ``(B,)`` 0 or 1.
      rotate_int: ``(B,)`` quarter turns, 0 to 3.
      translate_int: ``(B, 2)`` integer pixels (x, y).
      scale_w, aniso_w, brightness_w, contrast_w, saturation_w: ``(B,)`` standard normal
        deviates; the pipe's constants turn them into factors and offsets.
      rotate_angle, aniso_angle, hue_angle: ``(B,)`` radians.
      translate_w: ``(B, 2)`` standard normal deviates (x, y).
    """

    xflip: ArrayLike
    yflip: ArrayLike
    rotate_int: ArrayLike
    translate_int: ArrayLike
    scale_w: ArrayLike
    rotate_angle: ArrayLike
    aniso_w: ArrayLike
    aniso_angle: ArrayLike
    translate_w: ArrayLike
    brightness_w: ArrayLike
    contrast_w: ArrayLike
    lumaflip: ArrayLike
    hue_angle: ArrayLike
    saturation_w: ArrayLike


_INTEGER = ("xflip", "yflip", "rotate_int", "translate_int", "lumaflip")
_PAIRS = ("translate_int", "translate_w")


def identity_params(batch: int) -> AugmentParams:
    """Parameters that change nothing, for ``batch`` images."""
    return AugmentParams(
        **{
            field.name: jnp.zeros(
                (batch, 2) if field.name in _PAIRS else (batch,),
                jnp.int32 if field.name in _INTEGER else jnp.float32,
            )
            for field in dataclasses.fields(AugmentParams)
        }
    )


# ---------------------------------------------------------------------------- drawing


def sample_params(key: Key, shape: tuple[int, ...], pipe: AugmentPipe) -> AugmentParams:
    """Draw the parameters of a batch.

    An image's parameters depend on its own key alone, and each transformation's on its
    own stream: neither the batch nor what else is enabled changes them.

    Args:
      key: ``(B,)`` typed keys, one per image; or a single one, from which image i gets
        ``fold_in(key, i)``.
      shape: ``(B, H, W, C)`` of the images.
      pipe: what is drawn.

    Raises:
      ValueError: if the number of keys is not B, or they are not typed keys.
    """
    batch, height, width = _check_shape(shape, pipe)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"need typed keys (jax.random.key), got an array of {key.dtype}")
    if key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"need one key, or one per image: {key.shape} keys for shape {shape}")
    drawn = jax.vmap(lambda k: _draw(k, height, width, pipe))(key)
    # The same with and without 64-bit mode.
    types = {name: jnp.int32 if name in _INTEGER else jnp.float32 for name in drawn}
    return AugmentParams(**{name: drawn[name].astype(types[name]) for name in drawn})


def _draw(key: Key, height: int, width: int, pipe: AugmentPipe) -> dict[str, Array]:
    """The parameters of one image; zeros for what is not enabled."""
    # A column per transformation, enabled or not: each keeps its numbers whatever else
    # is enabled, and there is one call of the generator, whose code compiles slowly.
    uniform = jax.random.uniform(key, (6, len(TRANSFORMS)), jnp.float32)
    gate, first, second, third = uniform[:4]
    # Inverse of the normal distribution function; at 0 it would be infinite.
    normal = math.sqrt(2) * jax.scipy.special.erfinv(jnp.maximum(2 * uniform[4:] - 1, 2.0**-24 - 1))
    kept = gate < jnp.array([getattr(pipe, name) * pipe.p for name in TRANSFORMS])
    bit = kept * (first < 0.5)
    turn = kept * jnp.floor(4 * first)
    angle = kept * jnp.pi * (2 * first - 1)
    shift = kept[None] * (2 * jnp.stack([first, second]) - 1)
    deviate = kept[None] * normal

    at = {name: i for i, name in enumerate(TRANSFORMS)}
    size = jnp.array([width, height])
    params = {name: bit[at[name]] for name in ("xflip", "yflip", "lumaflip")}
    params["rotate_int"] = turn[at["rotate_int"]]
    pixels = shift[:, at["translate_int"]] * (pipe.translate_int_max * size)
    params["translate_int"] = jnp.round(pixels)
    params["rotate_angle"] = angle[at["rotate_frac"]] * pipe.rotate_frac_max
    params["hue_angle"] = angle[at["hue"]] * pipe.hue_max
    params["translate_w"] = deviate[:, at["translate_frac"]]
    for name in ("scale", "aniso", "brightness", "contrast", "saturation"):
        params[f"{name}_w"] = deviate[0, at[name]]
    # Its gate is its own, and not multiplied by p.
    turned = third[at["aniso"]] < (pipe.aniso_rotate_prob if pipe.aniso else 0)
    params["aniso_angle"] = turned * jnp.pi * (2 * second[at["aniso"]] - 1)
    return params


# --------------------------------------------------------------------------- applying


def augment_labels(params: AugmentParams, shape: tuple[int, ...], pipe: AugmentPipe) -> Array:
    """What the network is told: the unscaled draws; all zeros = unmodified.

    Args:
      params: of B images.
      shape: ``(B, H, W, C)`` of the images.
      pipe: whose enabled transformations have columns.

    Returns:
      ``(B, K)`` float32, K = ``pipe.label_dim``.
    """
    batch, height, width = _check_shape(shape, pipe)
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
    batch, height, width = _check_shape(shape, pipe)
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
    batch, height, width = _check_shape(images.shape, pipe)
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
    if any(getattr(pipe, name) for name in _COLOUR):
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


def _check_shape(shape: tuple[int, ...], pipe: AugmentPipe) -> tuple[int, int, int]:
    """Batch, height and width; ValueError where the pipe cannot handle the shape."""
    if len(shape) != 4:
        raise ValueError(f"images must have shape (B, H, W, C), got {tuple(shape)}")
    batch, height, width, channels = shape
    if pipe.rotate_int and height != width:
        raise ValueError(
            f"rotate_int turns images by 90 degrees and needs square ones, got {height}x{width}; "
            "set rotate_int=0"
        )
    if channels not in (1, 3) and any(getattr(pipe, name) for name in _COLOUR):
        raise ValueError(
            f"colour augmentation needs 1 or 3 channels, got {channels}; set brightness, "
            "contrast, lumaflip, hue and saturation to 0"
        )
    return batch, height, width

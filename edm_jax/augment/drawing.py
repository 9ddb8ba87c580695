"""How images may be changed, and how each one is: constants, parameters, and their draws."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike, Key

# In the order of execution and of the labels.
TRANSFORMS = (
    "xflip", "yflip", "rotate_int", "translate_int",
    "scale", "rotate_frac", "aniso", "translate_frac",
    "brightness", "contrast", "lumaflip", "hue", "saturation",
)  # fmt: skip
COLOUR = TRANSFORMS[8:]
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


WHOLE = ("xflip", "yflip", "rotate_int", "translate_int", "lumaflip")


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
    batch, height, width = check_shape(shape, pipe)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"need typed keys (jax.random.key), got an array of {key.dtype}")
    if key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"need one key, or one per image: {key.shape} keys for shape {shape}")
    drawn = jax.vmap(lambda k: _draw(k, height, width, pipe))(key)
    # The same with and without 64-bit mode.
    types = {name: jnp.int32 if name in WHOLE else jnp.float32 for name in drawn}
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


def check_shape(shape: tuple[int, ...], pipe: AugmentPipe) -> tuple[int, int, int]:
    """Batch, height and width; ValueError where the pipe cannot handle the shape."""
    if len(shape) != 4:
        raise ValueError(f"images must have shape (B, H, W, C), got {tuple(shape)}")
    batch, height, width, channels = shape
    if pipe.rotate_int and height != width:
        raise ValueError(
            f"rotate_int turns images by 90 degrees and needs square ones, got {height}x{width}; "
            "set rotate_int=0"
        )
    if channels not in (1, 3) and any(getattr(pipe, name) for name in COLOUR):
        raise ValueError(
            f"colour augmentation needs 1 or 3 channels, got {channels}; set brightness, "
            "contrast, lumaflip, hue and saturation to 0"
        )
    return batch, height, width

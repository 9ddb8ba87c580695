"""Attention with float32 logits and softmax, by the fast kernel where there is one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from edm_jax.models.ops import attention_kernel, target
from edm_jax.models.ops.stored import stored_gradient
from edm_jax.typing import Array

# Sizes of heads that cuDNN's kernel takes; more than 128 on Hopper and later only.
CUDNN_HEAD_MULTIPLE, CUDNN_HEAD_MOST = 8, 256
# From so many tokens TPUs take each head alone: the logits of all do not fit on the chip.
TPU_TOKENS_BY_HEAD = 1024
# From so many they go through a kernel of our own, on chips that it was made for.
TPU_TOKENS_IN_KERNEL = 64
# Images of a device whose logits of one head of 1024 tokens fit on the chip (v5e) with all that
# gradients keep there; of more, groups of so many are fastest, in at most so many groups.
TPU_IMAGES, TPU_IMAGES_OF_GROUP, TPU_GROUPS = 16, 8, 8


def heads_alone(dtype: Any, tokens: int) -> bool:
    """Whether `attention` goes `by_head`, which likes tokens to be the fastest axis of q, k, v."""
    half = jnp.dtype(dtype) == jnp.bfloat16
    return half and target.takes_forms_of("tpu") and tokens >= TPU_TOKENS_BY_HEAD


def in_one_kernel(dtype: Any, batch: int, tokens: int, heads: int, channels: int) -> bool:
    """Whether `attention_kernel.attend` takes heads of so many channels.

    It does in bfloat16 on the chips that it was made for; of several devices, if it is known
    which images are where (`target.batch_over` of a mesh).  On a machine with such a chip it is
    tried first (`tpu_kernel_works`).

    Args:
      dtype: of q, k and v.
      batch: images of all devices together.
      tokens: T of each image.
      heads: their number.
      channels: c of a head.
    """
    half = jnp.dtype(dtype) == jnp.bfloat16
    if not (half and target.takes_forms_of("tpu") and tokens >= TPU_TOKENS_IN_KERNEL):
        return False
    if not attention_kernel.takes(target.device_kind(), tokens, channels):
        return False
    if batch % target.devices() or (target.mesh() is None and target.devices() > 1):
        return False
    if jax.default_backend() != "tpu":
        return True  # compiled here for a described one
    return tpu_kernel_works((tokens, heads, channels))


def attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k / sqrt(c)) v of each head, with logits and softmax in float32 or wider.

    `jax.nn.dot_product_attention` keeps logits and softmax in float32 for any dtype of
    its arguments and rounds the weights to that dtype.  On NVIDIA GPUs half precision
    goes through cuDNN's fused kernel, once that was found to work and to be accurate
    for the shape (`cudnn_works`).  That kernel has no forward-mode derivative, and its
    gradient is the same bit for bit in every run only with
    ``XLA_FLAGS=--xla_gpu_deterministic_ops=true``, as that of a convolution.  On TPUs bfloat16
    goes through `by_head` if there are many tokens, on CPUs float32 through `divided_last`.
    Networks ask `in_one_kernel` first.

    Args:
      q, k, v: each ``(B, T, heads, c)``.

    Returns:
      ``(B, T, heads, c)`` of the dtype of q.
    """
    plain = jax.nn.dot_product_attention
    if jnp.finfo(q.dtype).bits > 16:
        return divided_last(q, k, v) if target.takes_forms_of("cpu") else plain(q, k, v)
    if heads_alone(q.dtype, q.shape[1]):
        return by_head(q, k, v)
    half = q.dtype == jnp.float16
    gpu, other = plain, _in_float32 if half else plain
    if target.takes_forms_of("gpu") and cudnn_works(q.shape[1:], q.dtype.name):
        gpu = functools.partial(plain, implementation="cudnn")
    elif not half:
        return plain(q, k, v)
    # float16 products that add up in float32 exist on GPUs alone; elsewhere the function
    # would not compile.
    return lax.platform_dependent(q, k, v, cuda=gpu, rocm=plain, default=other)


def by_head(q: Array, k: Array, v: Array) -> Array:
    """`attention` in bfloat16, each head by itself, whose logits nothing keeps.

    Logits of one head stay in the memory on a TPU chip, where those of all go through HBM twice,
    if there are not too many images either: more are taken in groups.
    """
    groups = _groups(q.shape[0])
    if groups == 1:
        return _heads(q, k, v)
    # Group i of n takes the images i, i + n, ...: so each device takes a part of every group.
    apart = [x.reshape(-1, groups, *x.shape[1:]) for x in (q, k, v)]
    parts = [_heads(*(x[:, i] for x in apart)) for i in range(groups)]
    return jnp.stack(parts, 1).reshape(q.shape)


def _groups(batch: int) -> int:
    """In how many groups `by_head` takes a batch, each of them split evenly over the devices."""
    images, rest = divmod(batch, target.devices())
    if rest or images <= TPU_IMAGES:
        return 1
    counts = [n for n in range(1, TPU_GROUPS + 1) if images % n == 0]
    return next((n for n in counts if images // n <= TPU_IMAGES_OF_GROUP), counts[-1])


def _heads(q: Array, k: Array, v: Array) -> Array:
    """Every head by itself.

    Tokens are the fastest axis, (B, heads, c, T) in memory: so a head is rows of an array, and
    nothing is spread over lanes anew.  Gradients compute a head's logits again.
    """
    # Not a loop: its slices and the array that it fills are copies.
    batch, tokens, count, channels = q.shape
    rows = (jnp.swapaxes(x.reshape(batch, tokens, count * channels), 1, 2) for x in (q, k, v))
    parts = (jnp.split(x, count, axis=1) for x in rows)
    heads = [_head(*head) for head in zip(*parts, strict=True)]
    return jnp.moveaxis(jnp.stack(heads, 1), 3, 1)


@jax.custom_jvp
def _head(q: Array, k: Array, v: Array) -> Array:
    """One head of `by_head`, ``(B, c, T)`` each.

        p = exp(l - z),   l = k^T q / sqrt(c),   z = log sum exp l over the keys
        o = v p,   o' = v' p + v (p l') - o sum(p l') over the keys

    Automatic differentiation would keep the sums apart from the products and compute another
    product again in gradients.
    """
    return _output_and_log_sum(q, k, v)[0]


@_head.defjvp
def _head_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    q, k, v = primals
    o, log_sum = _output_and_log_sum(q, k, v)

    @jax.checkpoint
    def tangent(q, k, v, o, log_sum, dq, dk, dv):
        # Exponentials in the product that makes the logits take four times as long.
        logits = lax.optimization_barrier(_logits(k, q))
        p = jnp.exp(logits - log_sum).astype(q.dtype)
        change = p * (_logits(dk, q) + _logits(k, dq)).astype(q.dtype)
        both = _product(_with_ones(v), change)
        do = both[:, :-1] - o.astype(jnp.float32) * both[:, -1:] + _product(dv, p)
        return do.astype(q.dtype)

    return o, tangent(q, k, v, o, log_sum, *tangents)


def _output_and_log_sum(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """o ``(B, c, T)`` of the dtype of q, and z ``(B, 1, T)`` in float32.

    The sum of the weights is one more row of a product: as a sum of its own it takes longer than
    both products.  It is that of the rounded weights, which then add up to 1.
    """
    logits = _logits(k, q)
    most = logits.max(1, keepdims=True)
    weights = jnp.exp(logits - most).astype(q.dtype)
    y = _product(_with_ones(v), weights)
    return (y[:, :-1] / y[:, -1:]).astype(q.dtype), most + jnp.log(y[:, -1:])


def _logits(k: Array, q: Array) -> Array:
    logits = jnp.einsum("bcs,bct->bst", k, q, preferred_element_type=jnp.float32)
    return logits * (q.shape[1] ** -0.5)


def _product(v: Array, weights: Array) -> Array:
    return jnp.einsum("bcs,bst->bct", v, weights, preferred_element_type=jnp.float32)


def _with_ones(v: Array) -> Array:
    return jnp.concatenate([v, jnp.ones_like(v[:, :1])], 1)


def divided_last(q: Array, k: Array, v: Array) -> Array:
    """`attention`, whose weights are divided by their sum after the product with v.

        w = exp(l - max l),   result (w v) / sum w

    So the gradient of the sum is one of T c numbers, where that of a softmax sums T^2 products.
    Products are written in the order of axes that XLA's library for CPUs takes without copies.
    """
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    logits = lax.dot_general(q, k, (((3,), (3,)), ((0, 1), (0, 1)))) * (q.shape[-1] ** -0.5)
    logits = stored_gradient(logits)
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    y = lax.dot_general(weights, v, (((3,), (2,)), ((0, 1), (0, 1))))
    return jnp.moveaxis(y / weights.sum(-1, keepdims=True), 1, 2)


def _in_float32(q: Array, k: Array, v: Array) -> Array:
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    return jax.nn.dot_product_attention(*wide).astype(q.dtype)


@functools.cache
def cudnn_works(shape: tuple[int, int, int], dtype: str) -> bool:
    """Whether cuDNN's attention runs on this machine and agrees with float32.

    The output and the three gradients of one image are compared, relative to their size
    (root mean square) and to four units of rounding of the dtype: the inputs of every
    product, the weights, the output and its cotangent are each rounded once.

    Args:
      shape: ``(T, heads, c)``.
      dtype: "bfloat16" or "float16".
    """
    if shape[2] % CUDNN_HEAD_MULTIPLE or shape[2] > CUDNN_HEAD_MOST:
        return False
    kernel = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return _works(kernel, shape, dtype, "gpu", "cuDNN's kernel")


@functools.cache
def tpu_kernel_works(shape: tuple[int, int, int]) -> bool:
    """Whether `attention_kernel` runs on this machine and agrees with float32; as `cudnn_works`.

    Args:
      shape: ``(T, heads, c)``.
    """
    tokens, heads, channels = shape

    def kernel(q: Array, k: Array, v: Array) -> Array:
        x = jnp.stack([q, k, v], 3)  # (1, T, heads, 3, c)
        # A product that only puts the three where they belong.
        same = jnp.eye(x[0, 0].size, dtype=x.dtype).reshape(-1, heads, 3, channels)
        bias = jnp.zeros(x.shape[2:], jnp.float32)
        return attention_kernel.attend(x.reshape(1, tokens, -1), same, bias).reshape(q.shape)

    return _works(kernel, shape, "bfloat16", "tpu", "the kernel for TPUs")


def _works(
    kernel: Callable[..., Array],
    shape: tuple[int, int, int],
    dtype: str,
    platform: str,
    name: str,
) -> bool:
    """Whether a kernel runs and agrees with float32; if not, a warning says why."""
    # The caller may be tracing for many devices, or guard transfers; this runs at once, on
    # numbers, on one.
    with (
        jax.ensure_compile_time_eval(),
        jax.transfer_guard("allow"),
        target.batch_over(1),
    ):
        try:
            error = _relative_error(kernel, shape, dtype, platform)
        except Exception as reason:  # a library that is missing or old, another chip
            text = " ".join(str(reason).split())[:200]
            warnings.warn(f"attention without {name}: {text}", stacklevel=3)
            return False
    limit = 4 * float(jnp.finfo(dtype).eps)
    if not error < limit:
        warnings.warn(
            f"attention without {name}: for {shape} in {dtype} it is off by "
            f"{error:.2g} relative, more than {limit:.2g}",
            stacklevel=3,
        )
    return error < limit


def _relative_error(
    kernel: Callable[..., Array], shape: tuple[int, int, int], dtype: str, platform: str
) -> float:
    """Largest relative deviation from float32 of the output and the gradients."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal((1, *shape)), dtype) for _ in range(4)]

    @functools.partial(jax.jit, static_argnums=1)
    def run(arrays: list[Array], attend: Callable[..., Array]) -> list[Array]:
        q, k, v, cotangent = arrays
        out, pullback = jax.vjp(attend, q, k, v)
        return [out, *pullback(cotangent)]

    # Whatever the default device is.
    placed = jax.device_put(arrays, jax.local_devices(backend=platform)[0])
    got = run(placed, kernel)
    with jax.default_matmul_precision("highest"):  # else TPUs round factors to half precision
        expected = run([x.astype(jnp.float32) for x in arrays], jax.nn.dot_product_attention)
    errors = []
    for one, other in zip(got, expected, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        errors.append(np.sqrt(np.mean(np.square(one - other)) / np.mean(np.square(other))))
    return float(np.max(errors))

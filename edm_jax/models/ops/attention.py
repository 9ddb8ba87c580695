"""Attention with float32 logits and softmax, by the fast kernel where there is one."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.models.ops import target
from edm_jax.typing import Array

# Sizes of heads that cuDNN's kernel takes; more than 128 on Hopper and later only.
CUDNN_HEAD_MULTIPLE, CUDNN_HEAD_MOST = 8, 256
# From so many tokens TPUs take a head at a time: the logits of all do not fit on the chip.
TPU_TOKENS_BY_HEAD = 1024


def attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k / sqrt(c)) v of each head, with float32 logits and softmax.

    `jax.nn.dot_product_attention` keeps logits and softmax in float32 for any dtype of
    its arguments and rounds the weights to that dtype.  On NVIDIA GPUs half precision
    goes through cuDNN's fused kernel, once that was found to work and to be accurate
    for the shape (`cudnn_works`).  That kernel has no forward-mode derivative, and its
    gradient is the same bit for bit in every run only with
    ``XLA_FLAGS=--xla_gpu_deterministic_ops=true``, as that of a convolution.  On TPUs bfloat16
    goes through `by_head` if there are many tokens.

    Args:
      q, k, v: each ``(B, T, heads, c)``.

    Returns:
      ``(B, T, heads, c)`` of the dtype of q.
    """
    plain = jax.nn.dot_product_attention
    if jnp.finfo(q.dtype).bits > 16:
        return plain(q, k, v)
    half = q.dtype == jnp.float16
    if target.platform() == "tpu" and not half and q.shape[1] >= TPU_TOKENS_BY_HEAD:
        return by_head(q, k, v)
    gpu, other = plain, _in_float32 if half else plain
    if target.platform() == "gpu" and cudnn_works(q.shape[1:], q.dtype.name):
        gpu = functools.partial(plain, implementation="cudnn")
    elif not half:
        return plain(q, k, v)
    # float16 products that add up in float32 exist on GPUs alone; elsewhere the function
    # would not compile.
    return jax.lax.platform_dependent(q, k, v, cuda=gpu, rocm=plain, default=other)


def by_head(q: Array, k: Array, v: Array) -> Array:
    """`attention` in bfloat16, one head after the other, whose logits nothing keeps.

        w = round(exp(l - max l)),   (o, n) = w [v, 1],   result o / n

    Logits of one head stay in the memory on a TPU chip, where those of all go through HBM twice.
    The sum n of the weights is one more column of a product that is padded to 128 anyway: as a
    sum of its own it takes longer than both products.  It is that of the rounded weights, which
    then add up to 1.  Gradients compute a head's logits again.
    """

    @jax.checkpoint
    def one(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv
        logits = jnp.einsum("btc,bsc->bts", q, k, preferred_element_type=jnp.float32)
        logits = logits * (q.shape[-1] ** -0.5)
        most = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        weights = jnp.exp(logits - most).astype(q.dtype)
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
        y = jnp.einsum("bts,bsc->btc", weights, v, preferred_element_type=jnp.float32)
        return (y[..., :-1] / y[..., -1:]).astype(q.dtype)

    heads = jax.lax.map(one, tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v)))
    return jnp.moveaxis(heads, 0, 2)


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
    # The caller may be tracing, or guard transfers; this runs at once, on numbers.
    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
        try:
            error = _relative_error(shape, dtype, "cudnn")
        except Exception as reason:  # no cuDNN, an old one, or a GPU without the kernel
            text = " ".join(str(reason).split())[:200]
            warnings.warn(f"attention without cuDNN's kernel: {text}", stacklevel=2)
            return False
    limit = 4 * float(jnp.finfo(dtype).eps)
    if not error < limit:
        warnings.warn(
            f"attention without cuDNN's kernel: for {shape} in {dtype} it is off by "
            f"{error:.2g} relative, more than {limit:.2g}",
            stacklevel=2,
        )
    return error < limit


def _relative_error(shape: tuple[int, int, int], dtype: str, implementation: str | None) -> float:
    """Largest relative deviation from float32 of the output and the gradients."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal((1, *shape)), dtype) for _ in range(4)]

    @functools.partial(jax.jit, static_argnums=1)
    def run(arrays: list[Array], implementation: str | None) -> list[Array]:
        q, k, v, cotangent = arrays
        attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
        out, pullback = jax.vjp(attend, q, k, v)
        return [out, *pullback(cotangent)]

    if implementation == "cudnn":  # whatever the default device is
        arrays = jax.device_put(arrays, jax.local_devices(backend="gpu")[0])
    got = run(arrays, implementation)
    expected = run([x.astype(jnp.float32) for x in arrays], None)
    errors = []
    for one, other in zip(got, expected, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        errors.append(np.sqrt(np.mean(np.square(one - other)) / np.mean(np.square(other))))
    return float(np.max(errors))

"""Attention of many tokens on TPUs as one kernel: logits and weights never leave the chip.

What the compiler makes of `attention.by_head` keeps the weights of a head for the products that
read them, which takes a multiple of the time of these products.  Here all products of a block of
queries follow each other within one program (Pallas), with the softmax and its gradient between
them.  The arrays are (..., channels of the head, tokens): tokens fill the lanes of the chip,
which channels of a head, 64, would fill by half.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from edm_jax.models.ops import target
from edm_jax.typing import Array

# Bytes of the memory of a chip that a kernel may take.
MEMORY = 32 * 2**20
# Logits of a block of queries, in float32 and several times over in that memory.
LOGITS = 2**20
# Tokens that the heads of one program have together, if these are several.
MANY = 1024
# v5e, v5p and v6e, as they call themselves: those that the compiler counts its cycles for.
CHIPS = ("TPU v5", "TPU v6")
LANES, ROWS = 128, 16  # of a register, in bfloat16
MOST_TOKENS, MOST_CHANNELS = 4096, 256


def takes(chip: str, tokens: int, channels: int) -> bool:
    """Whether the kernel is made for this kind of chip and for heads of this size.

    That is 64 tokens, or a multiple of 128 to 4096.
    """
    if not chip.startswith(CHIPS):
        return False
    fits = 0 < tokens <= MOST_TOKENS and channels <= MOST_CHANNELS
    return fits and tokens % lanes(tokens) == 0 and channels % ROWS == 0


def lanes(tokens: int) -> int:
    """How many lanes tokens fill; 64 fill half of them."""
    return LANES if tokens >= LANES else LANES // 2


def block_of_queries(tokens: int) -> int:
    """How many queries meet all keys at a time: whole lanes, a divisor of the tokens."""
    few = lanes(tokens)
    counts = range(few, tokens + 1, few)
    return max(n for n in counts if tokens % n == 0 and (n * tokens <= LOGITS or n == few))


def heads_of_program(heads: int, tokens: int) -> int:
    """How many heads follow each other in a program, so that it does not end when it began."""
    return max(n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * tokens <= MANY))


def attend(x: Array, kernel: Array, bias: Array) -> Array:
    """softmax(q k / sqrt(c)) v of each head, where q, k, v are ``x kernel + bias``.

    The product is here because its gradients need arrays in an order that the compiler does not
    find, the bias because its gradient is a sum over all tokens, which the kernel has for
    nothing.  It can be differentiated once, and backwards: not by `jax.jvp`, and not twice.

    Args:
      x: ``(B, T, C)``, of a size that `takes` accepts; of each device of `target.mesh` a part.
      kernel: ``(C, heads, 3, c)``: of each head that of q, of k and of v.
      bias: ``(heads, 3, c)``.

    Returns:
      ``(B, T, heads c)`` of the dtype of x; logits and softmax are float32.
    """
    return _attend(target.mesh(), x, kernel, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(mesh: Mesh | None, x: Array, kernel: Array, bias: Array) -> Array:
    return _attend_forward(mesh, x, kernel, bias)[0]


def _attend_forward(
    mesh: Mesh | None, x: Array, kernel: Array, bias: Array
) -> tuple[Array, tuple[Array, ...]]:
    qkv = jnp.einsum("btc,chid->bhidt", x, kernel.astype(x.dtype))
    qkv = qkv + bias[None, ..., None].astype(x.dtype)
    o, z = _on_each_device(mesh, forward_kernel, plain_forward)(qkv)
    return _tokens_second(o), (x, kernel, bias, qkv, o, z)


def _attend_backward(
    mesh: Mesh | None, kept: tuple[Array, ...], do: Array
) -> tuple[Array, Array, Array]:
    x, kernel, bias, qkv, o, z = kept
    do = jnp.swapaxes(do, 1, 2).reshape(o.shape)
    # Sums over the images of each device, (devices, heads, 3, c, lanes).
    dqkv, sums = _on_each_device(mesh, backward_kernel, plain_backward)(qkv, o, z, do)
    flat = dqkv.reshape(x.shape[0], -1, x.shape[1])
    # With heads as axes of their own this product takes twice as long.
    dx = jnp.einsum("bdt,cd->btc", flat, kernel.reshape(x.shape[2], -1).astype(x.dtype))
    dkernel = jnp.einsum("btc,bhidt->chid", x, dqkv).astype(kernel.dtype)
    return dx, dkernel, sums.sum((0, -1)).astype(bias.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def _tokens_second(o: Array) -> Array:
    return jnp.swapaxes(o.reshape(o.shape[0], -1, o.shape[-1]), 1, 2)


def _on_each_device(mesh: Mesh | None, kernel: Callable, plain: Callable) -> Callable:
    """The kernel on TPUs, its definition elsewhere, on the images of each device apart."""
    either = functools.partial(lax.platform_dependent, tpu=kernel, default=plain)
    if mesh is None:
        return either
    split = jax.sharding.PartitionSpec(mesh.axis_names)
    return jax.shard_map(either, mesh=mesh, in_specs=split, out_specs=(split, split),
                         check_vma=False)  # fmt: skip


def forward_kernel(x: Array, interpret: bool = False) -> tuple[Array, Array]:
    """`plain_forward` as a kernel."""
    batch, heads, _, channels, tokens = x.shape
    grid, whole, part, row, _ = _blocks(x)
    return pl.pallas_call(
        _forward_block,
        grid=grid,
        in_specs=[whole],
        out_specs=[part, row],
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, channels, tokens), x.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, tokens), jnp.float32),
        ],
        cost_estimate=_cost(x, 2),
        compiler_params=_parameters("parallel"),
        interpret=interpret,
        name="attention_forward",
    )(x)


def backward_kernel(
    x: Array, o: Array, z: Array, do: Array, interpret: bool = False
) -> tuple[Array, Array]:
    """`plain_backward` as a kernel."""
    _, heads, _, channels, tokens = x.shape
    grid, whole, part, row, sums = _blocks(x)
    return pl.pallas_call(
        _backward_block,
        grid=grid,
        in_specs=[whole, part, row, part],
        out_specs=[whole, sums],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((1, heads, 3, channels, lanes(tokens)), jnp.float32),
        ],
        scratch_shapes=[pltpu.VMEM((heads // grid[0], 2, channels, tokens), jnp.float32)],
        cost_estimate=_cost(x, 5),
        # An image after the other: sums are added up.
        compiler_params=_parameters("arbitrary"),
        interpret=interpret,
        name="attention_backward",
    )(x, o, z, do)


def _blocks(x: Array) -> tuple[Any, ...]:
    """The grid, and what one program sees: all of its heads, their queries, rows, and sums."""
    batch, heads, _, channels, tokens = x.shape
    some, block = heads_of_program(heads, tokens), block_of_queries(tokens)
    return (
        (heads // some, batch, tokens // block),
        pl.BlockSpec((1, some, 3, channels, tokens), lambda h, b, i: (b, h, 0, 0, 0)),
        pl.BlockSpec((1, some, channels, block), lambda h, b, i: (b, h, 0, i)),
        pl.BlockSpec((1, some, 1, block), lambda h, b, i: (b, h, 0, i)),
        pl.BlockSpec((1, some, 3, channels, lanes(tokens)), lambda h, b, i: (0, h, 0, 0, 0)),
    )


def _parameters(images: str) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", images, "arbitrary"), vmem_limit_bytes=MEMORY
    )


def _cost(x: Array, products: int) -> pl.CostEstimate:
    batch, heads, _, channels, tokens = x.shape
    pairs = batch * heads * tokens**2
    nbytes = x.size * x.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * products * channels * pairs,
        transcendentals=pairs,
        bytes_accessed=4 * nbytes // 3 if products == 2 else 8 * nbytes // 3,
    )


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    contracted = (((axis_a,), (axis_b,)), ((), ()))
    return lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)


def _unit(channels: int) -> float:
    """Logits in powers of two, of which the chip has the exponential."""
    return channels**-0.5 * math.log2(math.e)


def _forward_block(x, o, z) -> None:
    queries = _queries(o.shape[-1], x.shape[-1])
    for h in range(x.shape[1]):  # independent of each other, so that one fills the gaps of another
        q, k, v = x[0, h, 0, :, queries], x[0, h, 1], x[0, h, 2]
        channels = q.shape[0]
        logits = _dot(k, q, 0, 0) * _unit(channels)  # (keys, queries)
        most = logits.max(0, keepdims=True)
        p = jnp.exp2(logits - most).astype(v.dtype)
        # The sum of the weights is that of a row of ones, for the units of products have room.
        with_ones = jnp.concatenate([v, jnp.ones((ROWS, v.shape[1]), v.dtype)], 0)
        y = _dot(with_ones, p, 1, 0)
        total = y[channels : channels + 1]
        o[0, h] = (y[:channels] / total).astype(o.dtype)
        z[0, h] = most + jnp.log2(total)


def _backward_block(x, o, z, do, dx, sums, acc) -> None:
    image, i, last = pl.program_id(1), pl.program_id(2), pl.num_programs(2) - 1
    queries = _queries(o.shape[-1], x.shape[-1])

    @pl.when(i == 0)
    def _():
        acc[...] = jnp.zeros_like(acc)

        @pl.when(image == 0)
        def _():
            sums[...] = jnp.zeros_like(sums)

    for h in range(x.shape[1]):
        q, k, v = x[0, h, 0, :, queries], x[0, h, 1], x[0, h, 2]
        channels = q.shape[0]
        scale = channels**-0.5
        # dl = p (dp - sum over the keys of p dp), and that sum is o do.
        common = (o[0, h].astype(jnp.float32) * do[0, h].astype(jnp.float32)).sum(0, keepdims=True)
        p = jnp.exp2(_dot(k, q, 0, 0) * _unit(channels) - z[0, h])
        dl = (p * (_dot(v, do[0, h], 0, 0) - common)).astype(q.dtype)
        dq = _dot(k, dl, 1, 0) * scale
        acc[h, 0] += _dot(q, dl, 1, 1) * scale
        acc[h, 1] += _dot(do[0, h], p.astype(q.dtype), 1, 1)
        dx[0, h, 0, :, queries] = dq.astype(dx.dtype)
        sums[0, h, 0] += _by_lane(dq)

    @pl.when(i == last)
    def _():
        for h in range(x.shape[1]):
            for j in range(2):
                dx[0, h, 1 + j] = acc[h, j].astype(dx.dtype)
                sums[0, h, 1 + j] += _by_lane(acc[h, j])


def _queries(block: int, tokens: int) -> Any:
    """Which tokens are the queries of this program."""
    if block == tokens:
        return slice(None)
    return pl.ds(pl.multiple_of(pl.program_id(2) * block, block), block)


def _by_lane(a: Array) -> Array:
    """``(c, T) -> (c, lanes)``: the sum of every lane."""
    width = lanes(a.shape[1])
    return sum(a[:, i : i + width] for i in range(0, a.shape[1], width))


def plain_forward(x: Array) -> tuple[Array, Array]:
    """What the kernel computes.

        l = k^T q log2(e) / sqrt(c),   z = log2 sum 2^l over the keys,   o = v 2^(l - z)

    Args:
      x: ``(B, heads, 3, c, T)``.

    Returns:
      o ``(B, heads, c, T)`` of the dtype of x, and z ``(B, heads, 1, T)`` float32.
    """
    q, k, v = (x[:, :, i] for i in range(3))
    logits = _each("ds,dt->st", k, q) * _unit(x.shape[3])
    most = logits.max(2, keepdims=True)
    p = jnp.exp2(logits - most).astype(x.dtype)
    total = p.astype(jnp.float32).sum(2, keepdims=True)
    return (_each("ds,st->dt", v, p) / total).astype(x.dtype), most + jnp.log2(total)


def plain_backward(x: Array, o: Array, z: Array, do: Array) -> tuple[Array, Array]:
    """The gradient of `plain_forward`.

    Args:
      x, o, z: its argument and results.
      do: cotangent of o.

    Returns:
      dx, and its sums over the images and the tokens that share a lane,
      ``(1, heads, 3, c, lanes)`` float32.
    """
    q, k, v = (x[:, :, i] for i in range(3))
    scale = x.shape[3] ** -0.5
    common = (o.astype(jnp.float32) * do.astype(jnp.float32)).sum(2, keepdims=True)
    p = jnp.exp2(_each("ds,dt->st", k, q) * _unit(x.shape[3]) - z)
    dl = (p * (_each("ds,dt->st", v, do) - common)).astype(x.dtype)
    dx = jnp.stack([
        _each("ds,st->dt", k, dl) * scale,
        _each("dt,st->ds", q, dl) * scale,
        _each("dt,st->ds", do, p.astype(x.dtype)),
    ], 2)  # fmt: skip
    by_lane = dx.reshape(*dx.shape[:-1], -1, lanes(x.shape[-1]))
    return dx.astype(x.dtype), by_lane.sum((0, -2))[None]


def _each(axes: str, *arrays: Array) -> Array:
    """A product of each image and head."""
    inputs, output = axes.split("->")
    inputs = ",".join("bh" + one for one in inputs.split(","))
    return jnp.einsum(f"{inputs}->bh{output}", *arrays, preferred_element_type=jnp.float32)

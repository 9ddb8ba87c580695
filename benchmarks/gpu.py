r"""One part of `benchmarks/gpu.sh`: what an NVIDIA GPU computes, and how fast.

    python benchmarks/gpu.py golden          networks against golden arrays, by precision
    python benchmarks/gpu.py deterministic   the same gradient twice, bit for bit
    python benchmarks/gpu.py speed --net=cifar10 [--dtype=bfloat16] [--batch=256]

Needs jax, flax and optax alone.  Every part prints one table or a line, and ends with code 1 if
what it checks does not hold.  ``--tiny`` makes the networks so small that a CPU can try it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from networks_under_test import CASES, random_batch

from edm_jax import generate, models
from edm_jax.models.ops import attention
from edm_jax.noise import LogNormal, edm_weight
from edm_jax.train.averaging import Averaging
from edm_jax.train.objective import DenoisingObjective
from edm_jax.train.optimizer import make_optimizer
from edm_jax.train.step import init_state, make_train_step

GOLDEN = common.ROOT / "tests" / "golden"
# Precisions: dtype of the feature maps, precision of float32 products, cuDNN's attention, and
# the relative error (root mean square) that rounding alone stays below: units of 2^-24, 2^-11
# and 2^-9 each, a few dozen layers.
PRECISIONS = {
    "float32": ("float32", "highest", True, 1e-5),
    "float32, TF32": ("float32", "tensorfloat32", True, 1e-2),
    "bfloat16, cuDNN attention": ("bfloat16", None, True, 4e-2),
    "bfloat16, plain attention": ("bfloat16", None, False, 4e-2),
}
# GFLOP per image of the network and of a training step (docs/performance.md); peaks in bfloat16.
GFLOP = {"cifar10": (42.3, 126.8), "imagenet64": (219.3, 657.9)}
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}


def golden() -> bool:
    """Outputs and their error for each network and precision; whether all are close."""
    rows, good = [], True
    for name in ("ddpmpp_cond", "ncsnpp_cond", "adm_cond"):
        archive = np.load(GOLDEN / f"04_net_{name}.npz")
        for label, (dtype, precision, cudnn, limit) in PRECISIONS.items():
            error = _error(archive, dtype, precision, cudnn)
            good &= error < limit
            rows.append([name, label, f"{error:.2e}", f"{limit:.0e}", _verdict(error < limit)])
    common.print_table(["network", "precision", "relative error", "limit", ""], rows)
    return good


def _verdict(good: bool) -> str:
    return "good" if good else "WRONG"


def _error(archive: Any, dtype: str, precision: str | None, cudnn: bool) -> float:
    config = json.loads(str(archive["config"]))
    net = models.build(config.pop("model_type"), **config, dtype=dtype)
    state = {k[7:]: archive[k] for k in archive.files if k.startswith("params/")}
    variables = models.from_state_dict(state)
    labels = {k: archive[k] for k in ("class_labels", "augment_labels") if k in archive.files}
    works = attention.cudnn_works
    if not cudnn:
        attention.cudnn_works = lambda *shape: False
    try:
        with jax.default_matmul_precision(precision):
            x = np.moveaxis(archive["x"], 1, -1)
            out = jax.jit(net.apply)(variables, x, archive["noise_labels"], **labels)
    finally:
        attention.cudnn_works = works
    expected = np.moveaxis(archive["out_f64"], 1, -1)
    difference = np.asarray(out, np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected**2)))


def _case(name: str, dtype: str, tiny: bool) -> Any:
    case = CASES[name]()
    changes = {"dtype": dtype}
    if tiny:
        changes |= dict(img_resolution=8, model_channels=32, channel_mult=(1, 2), num_blocks=1,
                        attn_resolutions=(4,))  # fmt: skip
    return dataclasses.replace(case, network=case.network | changes)


def _training(model: Any, batch_size: int) -> tuple[Any, Any, Any]:
    optimizer = make_optimizer(batch_size=batch_size, lr=1e-4, lr_rampup_kimg=10)
    averaging = Averaging((500.0,))
    objective = DenoisingObjective(
        model.net.apply, model.preconditioning, LogNormal(), edm_weight, model.num_classes
    )
    step = make_train_step(objective, optimizer, averaging, batch_size=batch_size, log_every=100)
    state = init_state(model.variables, optimizer, averaging)
    batch = jax.device_put(random_batch(model, batch_size))
    return jax.jit(step, donate_argnums=0), state, batch


def deterministic(tiny: bool) -> bool:
    """Whether three steps from one state end in the same bits twice."""
    case = _case("cifar10", "bfloat16", tiny)
    # One block of each kind: what all of them have in common, compiled in a part of the time.
    model = dataclasses.replace(case, network=case.network | {"num_blocks": 1}).model()
    step, start, batch = _training(model, 8)

    def run() -> list[np.ndarray]:
        state = jax.tree.map(jnp.copy, start)  # a step takes the memory of its argument
        for _ in range(3):
            state = step(state, batch, jax.random.key(0))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]

    first, second = run(), run()
    same = all((a == b).all() for a, b in zip(first, second, strict=True))
    print(f"three training steps twice: {'the same bits' if same else 'DIFFERENT'}")
    return same


def _peak() -> float:
    """GiB that this process had at most on the device; NaN where the device does not count."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", float("nan")) / 2**30


def _memory(before: float = 0.0) -> str:
    """The peak of the last program, of which only a bound is known if one before took more."""
    peak = _peak()
    if np.isnan(peak):
        return "-"
    return f"{peak:.2f}" if peak > before else f"at most {peak:.2f}"


def _share(rate: float, gflop: float) -> str:
    kind = jax.devices()[0].device_kind
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in kind), None)
    return "-" if peak is None else f"{100 * rate * gflop / 1e3 / peak:.1f} %"


def speed(name: str, dtype: str, batch_size: int, num_steps: int, repeats: int, tiny: bool) -> bool:
    """Training and sampling: images per second, MFU, memory, seconds to compile."""
    model = _case(name, dtype, tiny).model()
    # Sampling first: it needs less memory, and the device only knows the most that there was.
    rows = [_sampling_row(name, model, dtype, batch_size, num_steps, repeats)]
    row, finite = _training_row(name, model, dtype, batch_size, repeats)
    rows.append(row)
    common.print_table(["", "dtype", "batch", "img/s", "MFU", "peak GiB", "compile s"], rows)
    return finite


def _sampling_row(
    name: str, model: Any, dtype: str, batch_size: int, num_steps: int, repeats: int
) -> list:
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sampling = generate.Sampling(num_steps=num_steps)
    lowered = generate.lower_batch(model, sampling, batch_size, where)
    _, seconds = common.compile_timed(_Lowered(lowered))
    labels = np.arange(batch_size) % model.num_classes if model.num_classes else None

    def draw() -> Any:
        return generate.sample(
            model, range(batch_size), labels, sampling=sampling, batch_size=batch_size
        )

    rate = batch_size / common.seconds_per_call(draw, repeats=max(1, repeats // 2))
    calls = 2 * num_steps - 1
    share = _share(rate * calls, GFLOP.get(name, (0.0, 0.0))[0])
    return [f"{name} sampling, {calls} calls", dtype, batch_size, f"{rate:.2f}", share, _memory(),
            f"{seconds:.1f}"]  # fmt: skip


def _training_row(
    name: str, model: Any, dtype: str, batch_size: int, repeats: int
) -> tuple[list, bool]:
    """The row, and whether the parameters are finite after it."""
    before = _peak()
    step, state, batch = _training(model, batch_size)
    key = jax.random.key(0)
    compiled, seconds = common.compile_timed(step, state, batch, key)

    def train() -> Any:
        nonlocal state
        state = compiled(state, batch, key)
        return state.step

    rate = batch_size / common.seconds_per_call(train, repeats=repeats, calls=3)
    share = _share(rate, GFLOP.get(name, (0.0, 0.0))[1])
    finite = all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state.params))
    return [f"{name} training", dtype, batch_size, f"{rate:.1f}", share, _memory(before),
            f"{seconds:.1f}"], finite  # fmt: skip


class _Lowered:
    """A program that is traced already, for `common.compile_timed`."""

    def __init__(self, lowered: Any):
        self._lowered = lowered

    def lower(self) -> Any:
        """The program."""
        return self._lowered


def main() -> None:
    """Carry out one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("golden", "deterministic", "speed"))
    parser.add_argument("--net", default="cifar10", choices=CASES)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=256, help="images per call")
    parser.add_argument("--num_steps", type=int, default=18, help="N of the sampler")
    parser.add_argument("--repeats", type=int, default=5, help="timings taken, median shown")
    parser.add_argument("--cache", default="", help="directory of compiled programs")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the program")
    args = parser.parse_args()
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, jax {jax.__version__}")
    if args.part == "golden":
        good = golden()
    elif args.part == "deterministic":
        good = deterministic(args.tiny)
    else:
        good = speed(args.net, args.dtype, args.batch, args.num_steps, args.repeats, args.tiny)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

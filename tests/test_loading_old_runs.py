"""Runs of earlier revisions load, sample and go on."""

import dataclasses

import jax
import numpy as np

import edm_jax
from edm_jax.train.checkpoint import CheckpointStore
from tests.support.command_line import start, wait_until
from tests.support.old_run import expected
from tests.train.test_checkpoint import make_state


def test_loads_and_samples_as_before(old_run):
    model = edm_jax.load(old_run)
    assert model.kind == "denoiser" and model.variant == "ema_0.1kimg"
    images = edm_jax.sample(model, range(3), [1, 2, 3], num_steps=3)
    # Of two programs of the same arithmetic: states begin at 240, whose float32 rounding of
    # 1.5e-5 the network amplifies.
    np.testing.assert_allclose(images, expected("images")[""], atol=1e-3)


def test_goes_on_to_the_weights_it_would_have_reached(old_run, environment):
    """A resumed run ends where the revision that began it ended."""
    # Compiled as it was then: this optimizer turns gradients of rounding into whole steps.
    one = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    as_then = environment | one | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    process = start(
        as_then, "--config=configs/tiny.py", f"--workdir={old_run}", "--config.train.keep_last=2",
        "--config.train.checkpoint_kimg=0.24", "--config.train.sample_kimg=0",
        "--config.evaluation.num_images=0",
    )  # fmt: skip
    # Its figures would show nothing of that.
    assert wait_until((old_run / "checkpoints" / "00000030").exists, process)
    process.kill()
    process.wait()
    params = edm_jax.load(old_run).params
    wanted = expected("params/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(key.key for key in path)
        kept = wanted.pop(name)
        if name.endswith("qkv/bias"):
            # That of the keys moves all logits of a softmax alike.  Its gradient is rounding
            # alone, of which the optimizer makes whole steps; the network does not see them.
            leaf, kept = (np.delete(np.asarray(a), np.s_[1::3]) for a in (leaf, kept))
        # The optimizer divides by gradients near 0: rounding shows more than in the sums.
        np.testing.assert_allclose(leaf, kept, atol=2e-4, err_msg=name)
    assert not wanted


def test_a_metric_more_or_less_does_not_matter(old_run):
    """What a checkpoint lacks begins anew; what is no longer kept is left there."""
    directory = old_run.parent / "checkpoints"
    state = make_state(3)
    store = CheckpointStore(directory)
    store.save(state, 3, {"format_version": 1})
    store.close()
    changed = dict(state.metrics)
    changed["new"] = changed.pop("grad_norm")
    changed["loss"] = {"sum": changed["loss"]["sum"] + 1, "count": changed["loss"]["count"]}
    abstract = jax.eval_shape(lambda: dataclasses.replace(state, metrics=changed))
    store = CheckpointStore(directory)
    restored = store.restore_latest(abstract)
    store.close()
    assert set(restored.metrics) == set(changed)
    np.testing.assert_array_equal(restored.metrics["new"]["sum"], 0)
    assert int(restored.step) == 3

"""Time steps drawn by their loss: the program's states (golden 20), unbiasedness, meshes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edm_jax import ddpm, respacing
from edm_jax.noise import DiscreteLevels, edm_weight
from edm_jax.precond import edm_preconditioning, iddpm_preconditioning
from edm_jax.train import sharding
from edm_jax.train.averaging import Averaging
from edm_jax.train.ddpm import DDPMObjective, ResampledDDPMObjective
from edm_jax.train.objective import StatefulObjective
from edm_jax.train.objectives import OBJECTIVES, Parts
from edm_jax.train.step import init_state, make_train_step
from tests.support import ddpm_golden as dg


def settings():
    return json.loads(str(dg.arrays()["resampler/config"]))


def make(c):
    return ddpm.LossSecondMoment(c["num_timesteps"], c["history_per_term"], c["uniform_prob"])


@pytest.fixture(scope="module")
def played():
    """All recorded updates, with the probabilities after each."""
    z, resampler = dg.arrays(), make(settings())
    with jax.enable_x64(True):
        state, after = resampler.init(jnp.float64), []
        update, probabilities = jax.jit(resampler.update), jax.jit(resampler.probabilities)
        for t, losses in zip(z["resampler/ts"], z["resampler/losses"], strict=True):
            state = update(state, jnp.asarray(t), jnp.asarray(losses, jnp.float64))
            after.append((np.asarray(probabilities(state)), np.asarray(state.counts)))
        return resampler, state, after


def test_recorded_updates(played):
    """Still uniform while one entry is missing, then the program's weights; suggested 1e-12."""
    z, (_, state, after) = dg.arrays(), played
    warm_at = None
    for i, (p, counts) in enumerate(after):
        kept = np.minimum(counts, 10)
        np.testing.assert_array_equal(kept, z["resampler/counts"][i])
        weights = z["resampler/weights"][i]
        np.testing.assert_allclose(p, weights / weights.sum(), rtol=1e-12)
        if warm_at is None and np.all(kept == 10):
            warm_at = i
        assert (warm_at is None) == bool(np.all(p == 0.2))
    assert warm_at == 11 - 1 or warm_at == 11
    with jax.enable_x64(True):
        np.testing.assert_array_equal(state.ordered(), z["resampler/history"])


def test_recorded_draws(played):
    z, (resampler, state, _) = dg.arrays(), played
    with jax.enable_x64(True):
        t = resampler.draw(state, jnp.asarray(z["resampler/sample_u"]))
        np.testing.assert_array_equal(t, z["resampler/sample_t"])
        np.testing.assert_allclose(
            resampler.importance(state, t), z["resampler/sample_weight"], rtol=1e-6
        )  # float32 there


def test_two_ranks_are_one_batch(x64):
    """Losses of all ranks in rank order: the state does not know how the batch was split."""
    z = dg.arrays()
    resampler = make(settings()["two_ranks"])
    state = resampler.init(jnp.float64)
    ts, losses = z["resampler/two_ranks/ts"], z["resampler/two_ranks/losses"]
    for i in range(5):
        state = resampler.update(
            state, jnp.asarray(ts[i].ravel()), jnp.asarray(losses[i].ravel(), jnp.float64)
        )
        want = z["resampler/two_ranks/history"][i]
        full = np.asarray(state.counts) >= 3
        np.testing.assert_array_equal(np.asarray(state.ordered())[full], want[full])
        for t in np.flatnonzero(~full):
            n = int(state.counts[t])
            np.testing.assert_array_equal(state.losses[t, :n], want[t, :n])
    weights = z["resampler/two_ranks/weights"]
    np.testing.assert_allclose(resampler.probabilities(state), weights / weights.sum(), rtol=1e-12)


def one_by_one(resampler, entries):
    """The rule in plain Python: lists of the last K losses."""
    lists = [[] for _ in range(resampler.num_steps)]
    for t, loss in entries:
        if np.isfinite(loss):
            lists[t] = (lists[t] + [loss])[-resampler.history :]
    return lists


def test_many_entries_of_one_time_step_in_a_batch():
    """More than K of one time step, and some that are not finite, in one update."""
    rng = np.random.default_rng(0)
    resampler = ddpm.LossSecondMoment(3, history=4)
    t = rng.choice(3, 60, p=[0.1, 0.3, 0.6])
    losses = rng.uniform(size=60).astype(np.float32)
    losses[::7] = np.nan
    losses[5] = np.inf
    state = resampler.init()
    update = jax.jit(resampler.update)
    for part in np.split(np.arange(60), 2):
        state = update(state, jnp.asarray(t[part]), jnp.asarray(losses[part]))
    want = one_by_one(resampler, zip(t, losses, strict=True))
    assert [len(w) for w in want] == [4, 4, 4]
    np.testing.assert_array_equal(state.ordered(), want)
    assert np.all(np.isfinite(resampler.probabilities(state)))


def test_zero_losses_stay_uniform():
    resampler = ddpm.LossSecondMoment(4, history=1)
    state = resampler.update(resampler.init(), jnp.arange(4), jnp.zeros(4))
    np.testing.assert_array_equal(resampler.probabilities(state), np.full(4, 0.25))


def test_weighted_mean_is_unbiased(played):
    """sum_t p_t * weight_t * L_t = mean_t L_t, exactly; and over draws within their spread."""
    resampler, state, _ = played
    with jax.enable_x64(True):
        p = resampler.probabilities(state)
        weight = resampler.importance(state, jnp.arange(5))
        np.testing.assert_allclose(p * weight, 0.2, rtol=1e-12)
        value = jnp.array([3.0, 0.1, 7.0, 0.01, 1.0])
        keys = jax.random.split(jax.random.key(0), 20000)
        t = resampler.draw(state, resampler.uniform_draws(keys))
        draws = weight[t] * value[t]
        spread = float(np.std(draws) / np.sqrt(len(draws)))
        assert abs(np.mean(draws) - np.mean(value)) < 5 * spread


def objective(resampler=None, loss="bound"):
    process = ddpm.ddpm_process("cosine", 8)

    def apply(variables, z, label, labels, augment_labels, *, train, image_ids, rngs):
        output = dg.network((variables["params"]["A"], variables["params"]["b"]), z, label, 6)
        return output

    if resampler is None:
        return DDPMObjective(apply, process, ddpm.LossKind(loss))
    return ResampledDDPMObjective(apply, process, ddpm.LossKind(loss), resampler=resampler)


def batch_of(count):
    rng = np.random.default_rng(1)
    return {"image": jnp.asarray(rng.integers(0, 256, (count, 4, 4, 3)), jnp.uint8)}


@pytest.fixture(scope="module")
def params():
    z = dg.arrays()
    return {"A": jnp.asarray(z["net/A"]), "b": jnp.asarray(z["net/b"])}


def test_objective_remembers_plain_losses(params):
    """The history holds losses before their importance weights, of the drawn time steps."""
    resampler = ddpm.LossSecondMoment(8, history=1)
    made, key, ids = objective(resampler), jax.random.key(0), jnp.arange(64)
    history = ddpm.LossHistory(
        jnp.asarray(np.geomspace(0.1, 10, 8), jnp.float32)[:, None], jnp.ones(8, jnp.int32)
    )
    batch = batch_of(64)
    loss, sigma = jax.jit(made.with_state(history).per_image)(params, {}, batch, key, ids)
    t = made.process.time_step(sigma)
    weight = resampler.importance(history, t)
    assert len(np.unique(np.round(weight, 5))) > 1
    updated = made.update(history, loss, sigma)
    plain = np.asarray(loss / weight)
    last = {int(i): plain[k] for k, i in enumerate(t)}
    for i, value in last.items():
        np.testing.assert_allclose(updated.losses[i, 0], value, rtol=1e-6)
    # Larger losses are drawn more often: p grows with t here.
    assert np.mean(np.asarray(t) >= 4) > 0.7
    with pytest.raises(ValueError, match="has no history"):
        made.per_image(params, {}, batch, key, ids)


@pytest.mark.parametrize("resampled", [False, True])
def test_images_do_not_depend_on_their_batch(params, resampled):
    made = objective(ddpm.LossSecondMoment(8) if resampled else None, loss="hybrid")
    made = made.with_state(made.initial_state()) if resampled else made
    key, ids, batch = jax.random.key(0), jnp.arange(8), batch_of(8)
    per_image = jax.jit(made.per_image)
    whole = per_image(params, {}, batch, key, ids)
    part = {k: v[2:5] for k, v in batch.items()}
    some = per_image(params, {}, part, key, ids[2:5])
    np.testing.assert_array_equal(some[1], whole[1][2:5])
    np.testing.assert_allclose(some[0], whole[0][2:5], rtol=1e-5)


def test_any_mesh_and_any_interruption(params):
    """The training step on one device and on eight, stored and restored in between."""
    resampler = ddpm.LossSecondMoment(8, history=2)
    made, batch = objective(resampler), batch_of(64)
    assert isinstance(made, StatefulObjective) and not isinstance(objective(), StatefulObjective)
    averaging, optimizer = Averaging([1.0]), optax.sgd(1e-3)
    options = {"batch_size": 64, "log_every": 10}
    mesh = sharding.make_mesh()
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)

    def run(place, replicate, interrupt, **more):
        step = jax.jit(make_train_step(made, optimizer, averaging, **options, **more))
        state = replicate(init_state({"params": params}, optimizer, averaging, made))
        for _ in range(4):
            state = step(state, place(batch), jax.random.key(7))
            if interrupt:
                state = replicate(jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), state))
        return state.objective

    same = lambda v: v  # noqa: E731
    one = run(same, same, False)
    many = run(lambda v: jax.device_put(v, split), lambda v: jax.device_put(v, whole), True)
    rounds = run(same, same, False, micro_batch=16)
    assert np.all(np.asarray(one.counts) >= 2)
    assert np.ptp(resampler.probabilities(one)) > 0
    for other in (many, rounds):
        np.testing.assert_array_equal(one.counts, other.counts)
        np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)  # sums of gradients


def parts(preconditioning, augment=None, num_classes=0):
    return Parts(
        None, (8, 8, 3), num_classes, preconditioning, DiscreteLevels(), edm_weight, augment
    )


def test_by_name():
    """Registered objectives, and the combinations that make no sense."""
    iddpm = parts(iddpm_preconditioning())
    made = OBJECTIVES["ddpm"](iddpm, loss="bound", resample=True)
    assert made.kind.factor(made.process.num_steps) == 1000 and made.resampler.num_steps == 1000
    assert type(OBJECTIVES["ddpm"](iddpm)) is DDPMObjective
    linear = respacing.ddpm_levels("linear").astype(np.float32)
    OBJECTIVES["ddpm"](parts(iddpm_preconditioning(levels=linear)), schedule="linear")
    for wrong in (iddpm_preconditioning(levels=linear), edm_preconditioning()):
        with pytest.raises(ValueError, match="not those of the"):
            OBJECTIVES["ddpm"](parts(wrong))
    with pytest.raises(ValueError, match="at least 2 classes"):
        OBJECTIVES["classifier"](iddpm)
    with pytest.raises(ValueError, match="leave augment out"):
        OBJECTIVES["classifier"](parts(edm_preconditioning(), lambda k, x: (x, x), 7))
    assert OBJECTIVES["classifier"](parts(edm_preconditioning(), num_classes=7)).num_classes == 7

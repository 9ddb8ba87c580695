"""The core is light: importing it loads jax, flax and numpy, nothing else of weight."""

import subprocess
import sys

import pytest

HEAVY = (
    "tensorflow tensorflow_datasets tensorboard clu orbax grain optax ml_collections sklearn "
    "scipy matplotlib PIL tqdm diffrax safetensors torch"
).split()


def test_import_is_light():
    code = f"import sys, edm_jax; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_starts_no_backend_and_changes_no_setting():
    code = (
        "import jax; before = dict(jax.config.values); import edm_jax; "
        "assert before == dict(jax.config.values); "
        "from jax.extend import backend; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ok"


def test_public_names_exist_and_are_documented():
    import edm_jax

    for name in edm_jax.__all__:
        assert getattr(edm_jax, name).__doc__, name


def test_every_module_can_be_reached_and_costs_nothing_before():
    code = (
        "import sys, edm_jax; before = set(sys.modules); "
        "assert not any(m.startswith('edm_jax.adapters') for m in before); "
        "edm_jax.adapters.clipped, edm_jax.exact.Gaussian, edm_jax.ema.ema_beta; "
        "assert {'adapters', 'exact', 'ema', 'train'} <= set(dir(edm_jax)); print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ok"


def test_unknown_attributes_are_refused_as_ever():
    import edm_jax

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edm_jax.nothing

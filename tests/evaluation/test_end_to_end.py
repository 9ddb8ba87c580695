"""From a model and a file of Inception's weights to FID, KID, IS, precision and recall."""

import json

import numpy as np
import pytest

import edm_jax
from edm_jax.data.sources.base import ArraySource
from edm_jax.evaluation import references
from edm_jax.generate import Sampling
from edm_jax.metrics import extractors, inception_weights
from edm_jax.metrics.frechet import frechet_between
from edm_jax.metrics.inception_score import inception_score
from edm_jax.metrics.reference import load_reference, save_reference
from tests.evaluation.test_loss_levels import silent_model
from tests.support import weights_writer
from tests.support.feature_networks import named_inception_weights

METRICS = ["fid", "kid", "is", "pr"]


@pytest.mark.soak
def test_inception_from_end_to_end(golden, tmp_path):
    """On weights made from their names, against features of golden 07 and NumPy."""
    file = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    weights = named_inception_weights(inception_weights.published_shapes())
    file.write_bytes(weights_writer.state_dict_zip(weights))
    g = golden("07_inception")
    real = g["noise32/images"].transpose(0, 2, 3, 1)
    extractor = extractors.build("inception", weights=file, batch_size=4)
    own = {"inception": extractor}

    # Pictures that another program has features of.
    made = references.make_reference(ArraySource(real), extractor, name="noise")
    expected = g["noise32/feat_2048"]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(made.features, expected, rtol=0, atol=1e-5 * scale)
    save_reference(tmp_path / "noise.npz", made)
    reference = load_reference(tmp_path / "noise.npz", "inception")

    # A model: cached references, a state on the disk, the same number either way.
    model, said = silent_model(), []
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), dtype=np.uint8)
    options = dict(
        metrics=METRICS, num_images=10, sampling=Sampling(num_steps=2), extractors=own,
        cache=tmp_path / "cache", resume=tmp_path / "state", save_seconds=0, batch_size=4,
    )  # fmt: skip
    shown = []
    first = edm_jax.evaluation.evaluate(
        model, ArraySource(images), report=said.append,
        on_samples=lambda seeds, samples: shown.append(samples), **options,
    )  # fmt: skip
    assert "making the reference of 12 images" in said[0]
    again = edm_jax.evaluation.evaluate(model, ArraySource(images), report=said.append, **options)
    assert again == first and any(line.startswith("reference: ") for line in said)
    generated, of_real = extractor(shown[0]), extractor(images)
    distance = frechet_between(generated.features, of_real.features)
    assert first["fid"] == pytest.approx(distance, rel=1e-6)
    # float64 sums in the same order
    assert first["is"] == pytest.approx(inception_score(generated.logits)[0], rel=1e-12)
    assert set(first["results"]) == {"fid", "kid", "is"} | {
        f"pr/{part}" for part in ("precision", "recall", "density", "coverage")
    }
    remarks = " ".join(first["results"]["fid"]["remarks"])
    assert "grey images were repeated" in remarks and "two halves of the reference" in remarks
    assert first["extractors"] == {"inception": extractor.digest}
    json.dumps(first)

    # A reference of images of another size is refused before anything is drawn.
    with pytest.raises(ValueError, match="32x32 pixels, these have 4x4"):
        edm_jax.evaluation.evaluate(model, reference, report=said.append, **options)

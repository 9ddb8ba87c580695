"""What a user gets wrong is one clear line before any work."""

import types

import jax.numpy as jnp
import pytest

from edm_jax import guidance as g
from tests.support import guided_mixture as gm


def model(num_classes=3, image_shape=(2, 2, 3), label_dropout=0.1, kind="denoiser"):
    return types.SimpleNamespace(
        kind=kind,
        num_classes=num_classes,
        image_shape=image_shape,
        description={"network": {"label_dropout": label_dropout}},
        denoise=lambda x, sigma, rows=None: x,
        logits=lambda x, sigma: jnp.zeros((x.shape[0], num_classes)),
    )


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: g.classifier_free(2.0, (1.61, 0.19)), "low <= high, got (1.61, 0.19)"),
        (lambda: g.classifier_free(2.0, (-1.0, 1.0)), "interval low must be at least 0"),
        (lambda: g.classifier_free(2.0, 1.61), "pair (low, high)"),
        (lambda: g.classifier_free(float("nan")), "scale must be finite"),
        (lambda: g.classifier_free("2.0x"), "scale must be a number"),
        (lambda: g.dynamic_threshold(99.5), "0.995 for 99.5 percent"),
        (lambda: g.dynamic_threshold(limit=0.0), "limit must be positive"),
        (lambda: g.dynamic_threshold(limit=2.0, cap=1.0), "cap must be at least limit"),
        (lambda: g.static_threshold(1.0, -1.0), "needs low < high, got low=1.0"),
        (lambda: g.autoguidance(3.0), "must be a Model"),
        (lambda: g.classifier_guidance(lambda x: x), "must be a value with logits"),
        (lambda: g.added(g.dynamic_threshold()), "thresholds go into chain"),
        (lambda: g.classifier_free(2.0, unconditional=gm.fails, together=True), "another network"),
    ],
)
def test_arguments(build, message):
    with pytest.raises(ValueError) as error:
        build()
    assert message in one_line(error)


@pytest.mark.parametrize(
    "guidance, guided, message",
    [
        (lambda: g.classifier_free(2.0), model(num_classes=0), "autoguidance guides uncond"),
        (lambda: g.classifier_free(2.0), model(label_dropout=0), "label_dropout 0; give"),
        (
            lambda: g.classifier_free(2.0, unconditional=model()),
            model(),
            "unconditional must be a model without labels",
        ),
        (
            lambda: g.classifier_free(2.0, null_row=jnp.zeros(4)),
            model(),
            "null_row must have shape (3,), got (4,)",
        ),
        (
            lambda: g.autoguidance(model(image_shape=(4, 4, 3)), 2.0),
            model(),
            "weaker must have image_shape (2, 2, 3), as the guided model, got (4, 4, 3)",
        ),
        (
            lambda: g.autoguidance(model(num_classes=4), 2.0),
            model(),
            "weaker must have num_classes 3, as the guided model, got 4",
        ),
        (
            lambda: g.autoguidance(model(kind="classifier"), 2.0),
            model(),
            "weaker must have kind 'denoiser', as the guided model, got 'classifier'",
        ),
        (
            lambda: g.classifier_guidance(model(num_classes=4)),
            model(),
            "classifier must have num_classes 3",
        ),
        (
            lambda: g.chain(g.classifier_guidance(model(num_classes=4)), g.dynamic_threshold()),
            model(),
            "classifier must have num_classes 3",
        ),
    ],
)
def test_models(guidance, guided, message):
    with pytest.raises(ValueError) as error:
        g.guided_denoiser(guided, guidance())
    assert message in one_line(error)


def test_models_that_fit():
    weak = model(label_dropout=0)
    for guidance, guided in (
        (g.classifier_free(2.0), model()),
        (g.classifier_free(2.0, unconditional=model(num_classes=0)), model(label_dropout=0)),
        (g.classifier_free(2.0, null_row=jnp.ones(3)), model(label_dropout=0)),
        (g.autoguidance(weak, 2.0), model(label_dropout=0)),
        (g.classifier_guidance(model()), model(num_classes=0)),
    ):
        g.guided_denoiser(guided, guidance)


def test_labels_of_an_unconditional_model_are_the_classifiers():
    """ADM's 256 unconditional model with its classifier: rows reach the classifier alone."""
    seen = []
    main = model(num_classes=0)
    main.denoise = lambda x, sigma, rows=None: (seen.append(rows), x)[1]
    guidance = g.chain(g.static_threshold(), g.classifier_guidance(model(), 1.0))
    assert g.label_dim(main, guidance) == 3 and g.label_dim(main) == 0
    assert g.label_dim(model(num_classes=5), guidance) == 5
    denoise = g.guided_denoiser(main, guidance)
    denoise(jnp.zeros((2, 2, 2, 3)), 1.0, jnp.eye(3)[:2])
    assert seen == [None]


@pytest.mark.parametrize("together", [False, True])
def test_rows_are_needed(together):
    x = jnp.zeros((2, 2, 2, 3))
    with pytest.raises(ValueError, match="needs label rows"):
        g.classifier_free(2.0, together=together).guide(model().denoise)(x, 1.0)
    with pytest.raises(ValueError, match="needs label rows"):
        g.classifier_guidance(model()).guide(model().denoise)(x, 1.0)
    with pytest.raises(ValueError, match="knows 3 classes"):
        g.classifier_guidance(model()).guide(model().denoise)(x, 1.0, jnp.eye(4)[:2])
    with pytest.raises(ValueError, match="instead of an interval"):
        g.sample_heun_by_step(
            g.classifier_free(2.0, (0.1, 1.0)), None, x, [1.0, 0.0], None, first=0, last=1
        )

"""The flags of guidance, and the guidance that they make."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from experiments import flags
from experiments.config.flag import UsageError

if TYPE_CHECKING:
    from edm_jax.guidance import Guidance
    from edm_jax.model import Model
    from edm_jax.sampling import Sampling

# Name on the command line -> in `edm_jax.guidance.GUIDANCES`.
KINDS = {
    "cfg": "classifier_free",
    "classifier_free": "classifier_free",
    "autoguidance": "autoguidance",
    "classifier": "classifier",
}
THRESHOLDS = ("static", "dynamic")


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError("must be two noise levels, low and high, such as 0.19,1.61") from None
    return low, high


FLAGS = (
    flags.choice(
        "guidance",
        tuple(KINDS),
        "Guide the model: away from itself without a label (cfg), away from a weaker model, or "
        "along the gradient of a classifier of noisy images.",
        example="cfg",
    ),
    flags.number("guidance_scale", "Its strength; for cfg 1 does nothing.", example="2"),
    flags.Flag(
        "guidance_interval",
        "Noise levels (low, high] at which it acts; by default all.",
        convert=_interval,
        example="0.19,1.61",
    ),
    flags.choice(
        "guidance_form",
        ("denoiser", "mean"),
        "Of --guidance=classifier: whether it changes what the model expects, for any sampler, or "
        "the mean of the steps of --sampler=ddpm, as ADM does.",
        example="mean",
    ),
    flags.path(
        "guidance_model",
        "The weaker model or the classifier; for cfg a model without labels in place of its own.",
        example="runs/weaker",
    ),
    flags.choice(
        "threshold",
        THRESHOLDS,
        "Clip what the model expects to [-1, 1], or to a quantile of each image, after guidance.",
        example="dynamic",
    ),
    flags.number("threshold_percentile", "Of --threshold=dynamic, as a fraction.", example="0.995"),
)


def check(values: types.SimpleNamespace) -> None:
    """Raise UsageError for flags that say nothing without another, before anything is loaded."""
    for name in ("guidance_scale", "guidance_interval", "guidance_model"):
        if getattr(values, name) is not None and values.guidance is None:
            raise UsageError(f"--{name} says nothing without --guidance; give --guidance=cfg")
    if values.threshold_percentile is not None and values.threshold != "dynamic":
        raise UsageError("--threshold_percentile belongs to --threshold=dynamic")
    kind = KINDS.get(values.guidance)
    if values.guidance_form is not None and kind != "classifier":
        raise UsageError("--guidance_form belongs to --guidance=classifier")
    if kind is not None and values.guidance_scale is None:
        raise UsageError(f"--guidance={values.guidance} needs a strength, --guidance_scale=2")
    if kind in ("autoguidance", "classifier") and values.guidance_model is None:
        what = "the weaker model" if kind == "autoguidance" else "the classifier"
        raise UsageError(
            f"--guidance={values.guidance} needs {what}, for example --guidance_model=runs/{kind}"
        )
    if values.guidance_model is not None and not values.guidance_model.exists():
        raise UsageError(f"--guidance_model={values.guidance_model}: there is nothing of that name")


def asked(values: types.SimpleNamespace) -> dict[str, Any] | None:
    """What the flags ask for as JSON values; None without guidance."""
    if values.guidance is None and values.threshold is None:
        return None
    told = {
        "name": KINDS.get(values.guidance),
        "scale": values.guidance_scale,
        "interval": None if values.guidance_interval is None else list(values.guidance_interval),
        "form": values.guidance_form,
        "model": None if values.guidance_model is None else str(values.guidance_model),
        "threshold": values.threshold,
        "percentile": values.threshold_percentile,
    }
    return {key: value for key, value in told.items() if value is not None}


def build(values: types.SimpleNamespace, model: Model, sampling: Sampling) -> Guidance | None:
    """The guidance that the flags ask for; None without any.

    Args:
      values: of FLAGS.
      model, sampling: for which it is checked.

    Raises:
      ValueError: it cannot guide the model, or not under this sampler.
    """
    from edm_jax.studies import guidances

    for name in ("guidance", "threshold"):
        if getattr(values, name) is not None and model.kind == "ardm":
            raise UsageError(
                f"--{name} changes a denoiser, and a model of kind 'ardm' has none; leave it out"
            )
    return guidances.build(asked(values), model, sampling)

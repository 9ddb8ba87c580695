"""Images of given seeds as PNG files, one archive, or one grid, with what was asked of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from edm_jax import generate, requests
from edm_jax.ardm.registry import build
from edm_jax.data.sources.labels import METADATA
from edm_jax.evaluation import drawing, protocol
from edm_jax.evaluation.reporting import weights_digest
from edm_jax.figures import files, sheets
from edm_jax.figures.decodings import decoding_sheet
from edm_jax.generate import Sampling
from edm_jax.model import Model, check_labels
from edm_jax.train.sharding import batch_sharding, make_mesh
from edm_jax.typing import ArrayLike
from experiments.sample_folders import SETTINGS, metadata, open_folder, write_classes
from experiments.workdir import WorkdirError, prepare, to_json

MAX_SEEDS = 100_000_000


def parse_ranges(text: str, what: str) -> list[int]:
    """``"1,2,5-10"`` -> [1, 2, 5, 6, 7, 8, 9, 10].

    Raises:
      ValueError: for anything else, naming the part that is wrong.
    """
    values: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise ValueError(
                f"--{what}={text}: {part!r} is not a number or a range; "
                f"write it like --{what}=0-63 or --{what}=1,2,5-10"
            )
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise ValueError(f"--{what}={text}: the range {part!r} runs backwards")
        if len(values) + last - first >= MAX_SEEDS:
            raise ValueError(f"--{what}={text}: more than {MAX_SEEDS} values")
        values.extend(range(first, last + 1))
    return values


def parse_seeds(text: str) -> list[int]:
    """Seeds of ``--seeds``, each once."""
    seeds = parse_ranges(text, "seeds")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds={text}: a seed stands there twice")
    return seeds


def labels_of(text: str | None, model: Model, seeds: Sequence[int]) -> np.ndarray | None:
    """The class of every seed: those of ``--labels``, else what each seed draws.

    A number is the index of a class; anything else is taken for names of classes.

    Returns:
      ``(n,)`` integers; ``(n, K)`` numbers where labels are vectors; None for an unconditional
      model.

    Raises:
      ValueError: for labels that the model has not, or another number of them.
    """
    if text is None:
        return generate.drawn_labels(model, seeds)
    if not model.num_classes:
        raise ValueError(f"--labels={text}: the model is unconditional; leave --labels out")
    if model.label_vectors is not None:
        raise ValueError(
            f"--labels={text}: the model was trained on label vectors of {model.num_classes} "
            "numbers, not on classes; leave --labels out (every seed draws one of those), or give "
            "vectors in Python: edm_jax.sample(model, seeds, labels)"
        )
    labels = np.asarray(_class_indices(text, model))
    if len(labels) not in (1, len(seeds)):
        raise ValueError(
            f"--labels={text}: {len(labels)} labels for {len(seeds)} seeds; give one, or one per "
            "seed"
        )
    labels = np.broadcast_to(labels, (len(seeds),))
    check_labels(labels, model.num_classes, len(seeds))
    return labels


def _class_indices(text: str, model: Model) -> ArrayLike:
    names = model.label_names or ()
    given = [text] if text in names else [part.strip() for part in text.split(",")]
    if not are_names(text) or not names:
        return parse_ranges(text, "labels")
    return model.class_indices(given)


def are_names(text: str) -> bool:
    """Whether ``--labels`` holds names of classes, and not numbers and ranges."""
    return any(not re.fullmatch(r"[\s\d-]*", part) for part in text.split(","))


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """Which images are drawn, and how.

    Attributes:
      model: to sample from.
      seeds, labels: one label per seed, or None.
      sampling: the request.
      guidance: see `edm_jax.generate.batches`.
      guidance_json: what the guidance is.
      batch_size: images at a time.

    Raises:
      ValueError: for what the model cannot do.
    """

    model: Model
    seeds: Sequence[int]
    labels: np.ndarray | None
    sampling: Sampling
    guidance: Any = None
    guidance_json: Mapping[str, Any] | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        # Before any folder is made.
        requests.check_request(self.model, self.sampling, self.guidance)

    def stream(self) -> Iterator[tuple[int, np.ndarray]]:
        """All images as bytes, see `drawing.stream`."""
        return drawing.stream(
            self.model, np.asarray(self.seeds), self.labels, self.sampling, self.guidance,
            batch_size=self.batch_size, finite=True,
        )  # fmt: skip

    @functools.cached_property
    def cost(self) -> dict[str, Any]:
        """``nfe``, network calls of an image, and under guidance ``network_rows`` of each net."""
        cost: dict[str, Any] = {"nfe": requests.network_calls(self.model, self.sampling)}
        if self.guidance is not None:
            rows = protocol.network_rows_of(self.guidance, self.sampling, self.model)
            cost["network_rows"] = rows
        return cost

    @property
    def plain_labels(self) -> list[Any] | None:
        """The class of every image, or its label vector, as JSON has them."""
        return None if self.labels is None else np.asarray(self.labels).tolist()

    @property
    def labels_by_seed(self) -> dict[str, Any] | None:
        """The label of every seed, as settings.json has them."""
        labels = self.plain_labels
        if labels is None:
            return None
        return {str(seed): label for seed, label in zip(self.seeds, labels, strict=True)}

    def told(self) -> str:
        """How many images, and what each costs."""
        calls = protocol.describe_calls(self.cost["nfe"], self.cost.get("network_rows"))
        return f"{len(self.seeds)} images, {calls} each"

    def settings(self) -> dict[str, Any]:
        """What tells these images from others, so that those of different models do not mix.

        And their `cost`, which follows from it.
        """
        settings = {
            "progress": self.model.description.get("progress"),
            "weights": self.model.variant,
            "weights_sha256": weights_digest(self.model),
            "sampling": to_json(self.sampling.to_json()),
        }
        if self.guidance_json:
            settings["guidance"] = dict(self.guidance_json)
        return json.loads(json.dumps(settings | self.cost))


def write_images(drawn: Drawing, outdir: pathlib.Path, *, subdirs: bool = False) -> None:
    """Write ``<seed>.png`` for each seed that is not there yet, and their classes.

    Args:
      drawn: the images.
      outdir: the settings of its images, ``settings.json``, must be these.
      subdirs: a folder for every thousand seeds, named by its first.
    """
    seeds = drawn.seeds
    open_folder(outdir, drawn.settings(), drawn.labels_by_seed)
    missing = [i for i, s in enumerate(seeds) if not (outdir / image_name(s, subdirs)).exists()]
    if len(missing) < len(seeds):
        print(f"{len(seeds) - len(missing)} of {len(seeds)} images are there already")
    if missing:
        _write_missing(drawn, outdir, missing, subdirs)
    write_classes(outdir, drawn.model.label_names)
    print(f"{drawn.told()}: {outdir}/{'<thousand>/' if subdirs else ''}<seed>.png")


def require_finite(seeds: np.ndarray, images: np.ndarray) -> None:
    """Raise ValueError for images that are not finite, which have no bytes."""
    good = np.isfinite(images).all(axis=(1, 2, 3))
    if not good.all():
        raise ValueError(
            f"the image of seed {seeds[np.argmin(good)]} is not finite: the sampler did not get "
            "to its end, or these are weights of a run that diverged; nothing of its batch is "
            "written"
        )


def image_name(seed: int, subdirs: bool = False) -> str:
    """``000123.png``, or ``000000/000123.png``: the published names (EDM section 7.1)."""
    return f"{seed - seed % 1000:06d}/{seed:06d}.png" if subdirs else f"{seed:06d}.png"


def write_archive(drawn: Drawing, file: pathlib.Path, *, subdirs: bool = False) -> None:
    """Write all images as one ``.npz`` or ``.zip``, whole or not at all; see `write_images`.

    An ``.npz`` has the images ``(n, H, W, C)`` uint8 as ``arr_0`` and the classes as ``arr_1``,
    as published programs have them (or label vectors), and ``seeds`` and ``settings``.

    Raises:
      WorkdirError: the file is there, or cannot be written.
    """
    seeds, classes = drawn.seeds, drawn.plain_labels
    if file.exists():
        raise WorkdirError(f"--outdir={file} exists; delete it or choose another name")
    prepare(file.parent, "outdir")
    settings = json.dumps(drawn.settings())
    seeds_array = np.asarray(seeds)
    images = drawn.stream()
    with files.replacing(file) as temporary, drawing.progress_bar(len(seeds), "samples") as bar:
        if file.suffix == ".npz":
            parts = []
            for _, some in images:
                parts.append(some)
                bar.update(len(some))
            more = {} if classes is None else {"arr_1": np.asarray(classes)}
            with temporary.open("wb") as out:
                np.savez(
                    out, arr_0=np.concatenate(parts), seeds=seeds_array, settings=settings, **more
                )
        else:
            names = [image_name(seed, subdirs) for seed in seeds]
            with zipfile.ZipFile(temporary, "w") as archive:
                for first, some in images:
                    for name, image in zip(names[first:], some, strict=False):
                        buffer = io.BytesIO()
                        sheets.to_pil(image).save(buffer, format="PNG")
                        archive.writestr(name, buffer.getvalue())
                    bar.update(len(some))
                archive.writestr(SETTINGS, settings)
                if classes is not None:
                    pairs = list(zip(names, classes, strict=True))
                    archive.writestr(METADATA, metadata(pairs, drawn.model.label_names))
    print(f"{drawn.told()}: {file}")


def _write_missing(drawn: Drawing, outdir: pathlib.Path, missing: list[int], subdirs: bool) -> None:
    """The images of some of the seeds, as they come."""
    with drawing.progress_bar(len(missing), "samples") as bar:
        for some, images in generate.batches(
            drawn.model,
            np.asarray([drawn.seeds[i] for i in missing]),
            None if drawn.labels is None else drawn.labels[missing],
            drawn.sampling,
            drawn.guidance,
            batch_size=drawn.batch_size,
            sharding=batch_sharding(make_mesh(jax.local_devices())),
        ):
            require_finite(some, images)
            for seed, image in zip(some, generate.to_uint8(images), strict=True):
                sheets.save_image(outdir / image_name(int(seed), subdirs), image)
            bar.update(len(some))


def write_grid(drawn: Drawing, outdir: pathlib.Path, *, name: str) -> None:
    """Write one sheet of all images; see `write_images`.

    Args:
      name: of the file: that of its seeds, so that grids of other seeds stay.
    """
    seeds, labels = drawn.seeds, drawn.labels
    settings = drawn.settings()
    open_folder(outdir, settings, drawn.labels_by_seed)
    images = drawing.draw(
        drawn.model, np.asarray(seeds), labels, drawn.sampling, drawn.guidance,
        batch_size=drawn.batch_size,
    )  # fmt: skip
    require_finite(np.asarray(seeds), images)
    columns = max(1, round(len(images) ** 0.5))
    told = settings | {"seeds": list(seeds)}
    if labels is not None:
        told["labels"] = drawn.plain_labels
    sheets.sample_grid(outdir / name, images, columns, told=told)
    print(f"{drawn.told()}: {outdir / name}")


def write_decoding(drawn: Drawing, outdir: pathlib.Path, *, name: str) -> None:
    """Write one sheet of all images of an autoregressive model while they are drawn.

    Args:
      name: of the file.
    """
    settings = drawn.settings()
    open_folder(outdir, settings, drawn.labels_by_seed)
    visited = generate.sample(
        drawn.model, drawn.seeds, drawn.labels, sampling=drawn.sampling,
        guidance=drawn.guidance, batch_size=drawn.batch_size, trajectory=True,
    )  # fmt: skip
    seeds = list(drawn.seeds)
    told = settings | {"seeds": seeds}
    if drawn.labels is not None:
        told["labels"] = drawn.plain_labels
    num_values = build(**drawn.model.description["process"]).num_values
    decoding_sheet(
        outdir / name, visited.x, visited.known, num_values,
        names=[f"seed {seed}" for seed in seeds], told=told,
        title=f"{len(visited.x) - 1} network calls; blue is not known yet",
    )  # fmt: skip
    print(f"{len(seeds)} images in progress: {outdir / name}")


def grid_name(seeds: str, ending: str = "png") -> str:
    """``grid-0-63.png`` of ``--seeds=0-63``; long lists by their digest."""
    text = re.sub(r"\s", "", seeds)
    if len(text) > 60:
        text = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"grid-{text}.{ending}"

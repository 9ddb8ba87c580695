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
from experiments.workdir import WorkdirError, prepare, to_json, write_atomically

SETTINGS = "settings.json"
# Of these, what follows from the others; older programs did not write it.
FOLLOWS = ("nfe", "network_rows")
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
      ``(n,)`` integers; None for an unconditional model.

    Raises:
      ValueError: for labels that the model has not, or another number of them.
    """
    if text is None:
        return generate.drawn_labels(model, seeds)
    if not model.num_classes:
        raise ValueError(f"--labels={text}: the model is unconditional; leave --labels out")
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
    open_outdir(drawn, outdir)
    missing = [i for i, s in enumerate(seeds) if not (outdir / image_name(s, subdirs)).exists()]
    if len(missing) < len(seeds):
        print(f"{len(seeds) - len(missing)} of {len(seeds)} images are there already")
    if missing:
        _write_missing(drawn, outdir, missing, subdirs)
    _write_classes(outdir)
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


def _write_classes(outdir: pathlib.Path) -> None:
    """dataset.json: the classes of the images that are there, so that they are a data set."""
    labels = json.loads((outdir / SETTINGS).read_text())["labels"]
    if labels is None:
        return
    names = sorted(path.relative_to(outdir).as_posix() for path in outdir.rglob("*.png"))
    pairs = []
    for name in names:
        stem = pathlib.Path(name).stem
        if stem.isdigit() and str(int(stem)) in labels:
            pairs.append([name, labels[str(int(stem))]])
    write_atomically(outdir / METADATA, json.dumps({"labels": pairs}) + "\n")


def write_archive(drawn: Drawing, file: pathlib.Path, *, subdirs: bool = False) -> None:
    """Write all images as one ``.npz`` or ``.zip``, whole or not at all; see `write_images`.

    An ``.npz`` has the images ``(n, H, W, C)`` uint8 as ``arr_0`` and the classes as ``arr_1``,
    as published programs have them, and ``seeds`` and ``settings``.

    Raises:
      WorkdirError: the file is there, or cannot be written.
    """
    seeds, labels = drawn.seeds, drawn.labels
    if file.exists():
        raise WorkdirError(f"--outdir={file} exists; delete it or choose another name")
    prepare(file.parent, "outdir")
    settings = json.dumps(drawn.settings())
    classes = None if labels is None else [int(label) for label in labels]
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
                    pairs = [list(pair) for pair in zip(names, classes, strict=True)]
                    archive.writestr(METADATA, json.dumps({"labels": pairs}))
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
    settings = open_outdir(drawn, outdir)
    images = drawing.draw(
        drawn.model, np.asarray(seeds), labels, drawn.sampling, drawn.guidance,
        batch_size=drawn.batch_size,
    )  # fmt: skip
    require_finite(np.asarray(seeds), images)
    columns = max(1, round(len(images) ** 0.5))
    told = settings | {"seeds": list(seeds)}
    if labels is not None:
        told["labels"] = [int(label) for label in labels]
    sheets.sample_grid(outdir / name, images, columns, told=told)
    print(f"{drawn.told()}: {outdir / name}")


def write_decoding(drawn: Drawing, outdir: pathlib.Path, *, name: str) -> None:
    """Write one sheet of all images of an autoregressive model while they are drawn.

    Args:
      name: of the file.
    """
    settings = open_outdir(drawn, outdir)
    visited = generate.sample(
        drawn.model, drawn.seeds, drawn.labels, sampling=drawn.sampling,
        guidance=drawn.guidance, batch_size=drawn.batch_size, trajectory=True,
    )  # fmt: skip
    seeds = list(drawn.seeds)
    told = settings | {"seeds": seeds}
    if drawn.labels is not None:
        told["labels"] = [int(label) for label in drawn.labels]
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


def open_outdir(drawn: Drawing, outdir: pathlib.Path) -> dict[str, Any]:
    """Prepare a directory for images, or refuse one that holds images of another request.

    Returns:
      The settings of these images, as settings.json has them.

    Raises:
      WorkdirError: if it cannot be written, or its images are others.
    """
    prepare(outdir, "outdir")
    settings = drawn.settings()
    by_seed = None
    if drawn.labels is not None:
        pairs = zip(drawn.seeds, drawn.labels, strict=True)
        by_seed = {str(seed): int(label) for seed, label in pairs}
    _check_settings(outdir, settings | {"labels": by_seed})
    return settings


def _check_settings(outdir: pathlib.Path, settings: dict[str, Any]) -> None:
    """Compare with those of the images that are there, and note the labels of new seeds."""
    path = outdir / SETTINGS
    pictures = (p for p in outdir.rglob("*") if p.suffix in (".png", ".pdf"))
    if not path.exists() or next(pictures, None) is None:
        write_atomically(path, json.dumps(settings, indent=2) + "\n")
        return
    try:
        there = json.loads(path.read_text())
        old, new = there["labels"], settings["labels"]
    except (ValueError, KeyError, TypeError):
        there, old, new = {}, None, None
    if isinstance(old, dict) and isinstance(new, dict):
        both = old | new
        if all(both[seed] == label for seed, label in old.items()):
            there["labels"] = settings["labels"] = both
    keys = (settings.keys() | there.keys()).difference(FOLLOWS)
    differing = sorted(k for k in keys if settings.get(k) != there.get(k))
    if differing:
        raise WorkdirError(
            f"--outdir={outdir} holds samples of other settings ({', '.join(differing)} differ); "
            "choose another --outdir"
        )
    write_atomically(path, json.dumps(settings, indent=2) + "\n")

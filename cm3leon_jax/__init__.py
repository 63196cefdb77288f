"""CM3Leon in JAX: one transformer that reads and writes text and images as one stream of tokens."""

from cm3leon_jax.config import Experiment
from cm3leon_jax.decoding.generator import Generator, load
from cm3leon_jax.presets import preset
from cm3leon_jax.tokens.document import Document, Image, Text
from cm3leon_jax.version import __version__

__all__ = ["Document", "Experiment", "Generator", "Image", "Text", "__version__", "load", "preset"]

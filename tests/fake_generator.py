"""A generator that answers `cm3leon sample` at once, and where its tests work."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3leon_jax import config

SIZE = 8


def paint(*about) -> Image.Image:
    """A picture that depends on everything that it was asked for."""
    rng = np.random.default_rng(zlib.crc32(repr(about).encode()))
    return Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))


class FakeGenerator:
    """Stands in for a Generator: answers at once, and keeps what it was asked."""

    def __init__(self, experiment: config.Experiment):
        self.experiment, self.memory, self.upscaler = experiment, None, None
        self.identity = "0123456789abcdef"
        self.calls: list[tuple] = []

    def images(self, prompt, n=1, *, guidance=None, contrastive=None, temperature=None, top_p=None,
               top_k=None, documents=None, candidates=None, mixed=False, return_scores=False,
               guidance_interval=None, speculative=False, stream=None, seed=0):  # fmt: skip
        self.calls.append(("images", list(prompt), n, seed))
        if n < 1 or "refused" in prompt:
            raise ValueError(f"n={n}: use at least 1, and no refused prompt")
        assert (guidance is None) == (contrastive is not None and not mixed)
        options = (guidance, temperature, top_p, top_k, documents, contrastive, candidates, mixed)
        self.fast = (guidance_interval, speculative)
        drawn = [paint(one, number, options, seed) for one in prompt for number in range(n)]
        return [(image, 0.25) for image in drawn] if return_scores else drawn

    def require_upscaler(self):
        if self.upscaler is None:
            raise ValueError("upscaler=None")

    def upscale(self, image):
        return [picture.resize((4 * SIZE, 4 * SIZE)) for picture in image]

    def caption(self, image, *, style="short", documents=None, temperature=None,
                repetition_penalty=None, stream=None, seed=0):  # fmt: skip
        assert repetition_penalty == 1
        self.calls.append(("caption", len(image), style, documents, temperature, seed))
        return [f"{style} {int(pixels[0, 0, 0])} größer" for pixels in image]

    def answer(self, image, question, *, explain=False, temperature=None, repetition_penalty=None,
               documents=0, stream=None, seed=0):  # fmt: skip
        return [f"{q} {int(i[0, 0, 0])} {explain} {seed}" for i, q in zip(image, question)]

    def edit(self, image, instruction, *, guidance_image=1.5, guidance_text=7.5, temperature=None,
             top_p=None, top_k=None, documents=0, seed=0):  # fmt: skip
        options = (guidance_image, guidance_text, temperature, top_p, top_k, seed)
        return [paint(i.sum(), asked, *options) for i, asked in zip(image, instruction)]

    def from_structure(self, map_image, kind, prompt, *, guidance=3.0, temperature=None,
                       top_p=None, top_k=None, documents=0, seed=0):  # fmt: skip
        options = (kind, guidance, temperature, top_p, top_k, seed)
        return [paint(i.sum(), asked, *options) for i, asked in zip(map_image, prompt)]

    def from_boxes(self, caption, boxes, *, guidance=3.0, temperature=None, top_p=None, top_k=None,
                   documents=0, seed=0):  # fmt: skip
        self.calls.append(("boxes", caption, boxes, guidance, temperature, top_p, top_k, seed))
        return paint(caption, boxes, seed)


def pixels(source) -> np.ndarray:
    return np.asarray(Image.open(source))


def serve(c: config.Experiment, patch: pytest.MonkeyPatch) -> FakeGenerator:
    """Whatever bundle is loaded, it is this generator."""
    generator = FakeGenerator(config.replace(c, {"decode.top_p": 0.75}))
    patch.setattr("cm3leon_jax.decoding.generator.load", lambda bundle: generator)
    return generator


def enter(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Makes it the current folder, with a picture whose every value is 7."""
    patch.chdir(folder)
    Image.new("RGB", (12, 10), (7, 7, 7)).save("seven.png")
    return folder

"""Makes the golden values of tests/test_fid.py, test_caption_scores.py and test_vqa.py.

Run once, in an environment with torch 2.13, torch-fidelity 0.4.0, pycocoevalcap 1.2 and Java, and
with PythonEvaluationTools/vqaEvaluation/vqaEval.py of github.com/GT-Vision-Lab/VQA (commit a013f00)
turned into Python 3:

    PYTHONPATH=. python tests/metric_oracles.py vqaEval.py

torch-fidelity imports torchvision for pictures only; where that does not load, an empty module of
its name does. Everything random is made here from fixed seeds, for the tests too.
"""

import importlib.util
import json
import sys
import zlib
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
SHAPES = ((32, 40), (299, 299), (310, 256))  # Y X of pictures that are resized
WORDS = "a an the two zero dog dont don't cat, 1,000 3.5 red-ish yes. it's U.S. (blue) o'clock"
CAPTIONS = (
    "A man riding a wave on top of a surfboard.",
    "Two dogs, one black and one white; they're playing!",
    "It's a don't-walk sign (red) near the U.S. Post Office...",
    'The sign says "STOP" -- isn\'t that clear?',
    "a $5.00 bill, 3.5 inches; 1,000 people at 10:30 a.m.",
    "Children's toys on the boys' bed & a cup of coffee.",
    "he cannot see: we're gonna go, I'll wait. They've left",
    "A kitchen with stove/oven and well-lit counter-tops",
    "An airplane is flying over Mt. Fuji in the U.K.",
    "someone wrote 'hello world' on the wall",
    "A 3/4 view of a 2-story bus #42 on 5th Ave.",
    "a 2-way 5-year-old 1950s-style car, from the '90s",
    "Mr. and Mrs. Smith cut the cake @ 6 p.m.",
    "a mat.A cat sat. It is in the sun.",
    "women's tennis match vs. men's",
    "A woman \u2013 smiling \u2014 happily\u2026 at \u201cthis\u201d",
    "The [red] {blue} sign of the Foo Co. on Fri. {70%}",
)


def make_state(shapes: dict[str, tuple[int, int, int, int]]) -> dict[str, np.ndarray]:
    """Weights of every convolution and batch norm, by the names of the public file."""
    state = {}
    for name, (y, x, inputs, outputs) in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        kernel = rng.standard_normal((outputs, inputs, y, x), np.float32)
        state[f"{name}.conv.weight"] = kernel * np.float32(np.sqrt(2 / (y * x * inputs)))
        state[f"{name}.bn.weight"] = rng.uniform(0.8, 1.2, outputs).astype(np.float32)
        state[f"{name}.bn.bias"] = rng.uniform(-0.2, 0.2, outputs).astype(np.float32)
        state[f"{name}.bn.running_mean"] = rng.uniform(-0.2, 0.2, outputs).astype(np.float32)
        state[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, outputs).astype(np.float32)
    return state


def make_pictures(y: int, x: int, count: int = 2) -> np.ndarray:
    """uint8 [count y x 3], smooth with noise."""
    rng = np.random.default_rng(y * x)
    waves = np.sin(np.arange(y)[:, None, None] / 5 + np.arange(x)[None, :, None] / 7 + np.arange(3))
    noise = rng.normal(0, 30, (count, y, x, 3))
    return (127 + 90 * waves + noise).clip(0, 255).astype(np.uint8)


def make_features(seed: int, count: int = 60, width: int = 16) -> np.ndarray:
    """float32 [count width], of correlated columns."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, width)) @ rng.standard_normal((width, width))
    return (mixed + 0.1 * seed).astype(np.float32)


def make_answers(count: int = 60) -> list[tuple[str, list[str]]]:
    """An answer and ten of people, of one to three WORDS; every third time people agree."""
    rng = np.random.default_rng(0)

    def phrase() -> str:
        return " ".join(rng.choice(WORDS.split(), rng.integers(1, 4)))

    made = []
    for i in range(count):
        pool = [phrase() for _ in range(1 if i % 3 == 0 else 3)]
        made.append(
            (str(rng.choice([*pool, phrase()])), [str(rng.choice(pool)) for _ in range(10)])
        )
    return made


def golden_fid() -> dict[str, np.ndarray]:
    for part in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
        sys.modules.setdefault(f"torchvision{part}", MagicMock())
    import tempfile

    import torch
    from torch.nn.functional import interpolate
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x,
    )
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    from cm3leon_jax.models.inception import kernel_shapes

    state = {name: torch.tensor(array) for name, array in make_state(kernel_shapes()).items()}
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, f"{folder}/weights.pth")
        network = FeatureExtractorInceptionV3(
            "random", ["2048"], f"{folder}/weights.pth", "float64"
        )
    pictures = {
        shape: torch.tensor(make_pictures(*shape).transpose(0, 3, 1, 2)) for shape in SHAPES
    }
    (found,) = network(pictures[SHAPES[0]])
    golden = {"features": found.numpy()}
    for number, (_shape, pixels) in enumerate(pictures.items()):
        both = {
            "tensorflow": interpolate_bilinear_2d_like_tensorflow1x(
                pixels.float(), size=(299, 299), align_corners=False
            ),
            "pytorch": interpolate(
                pixels.float() / 255, size=(299, 299), mode="bilinear", align_corners=False
            ),
        }
        for name, resized in both.items():  # a few rows and columns, to keep the file small
            golden[f"{name}_{number}"] = resized[0, :, ::37, ::23].numpy().transpose(1, 2, 0)
    one, other = torch.tensor(make_features(0)), torch.tensor(make_features(1))
    statistics = [fid_features_to_statistics(each.double()) for each in (one, other)]
    golden["fid"] = np.array(
        fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    )
    kid = kid_features_to_metric(
        one.double(), other.double(), kid_subsets=10, kid_subset_size=20, rng_seed=2020,
        kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1, verbose=False,
    )  # fmt: skip
    golden["kid"] = np.array([*kid.values()])
    return golden


def golden_tokens() -> list[str]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(CAPTIONS)})
    return [found[i][0] for i in range(len(CAPTIONS))]


def golden_vqa(script: str) -> dict[str, list]:
    from types import SimpleNamespace

    spec = importlib.util.spec_from_file_location("vqaEval", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = make_answers()
    people = {
        i: {
            "answers": [{"answer": text, "answer_id": n} for n, text in enumerate(answers, 1)],
            "question_type": "none",
            "answer_type": "other",
        }
        for i, (_, answers) in enumerate(made)
    }
    given = {i: {"answer": answer} for i, (answer, _) in enumerate(made)}
    vqa = SimpleNamespace(qa=people, getQuesIds=lambda: list(people))
    scorer = module.VQAEval(vqa, SimpleNamespace(qa=given), n=9)
    texts = sorted({text for answer, answers in made for text in (answer, *answers)})
    texts += [*scorer.contractions, *scorer.manualMap]
    normal = [scorer.processDigitArticle(scorer.processPunctuation(text)) for text in texts]
    scorer.evaluate()
    return {"accuracies": [scorer.evalQA[i] for i in people], "texts": texts, "normal": normal}


if __name__ == "__main__":
    np.savez_compressed(GOLDEN / "fid.npz", **golden_fid())
    texts = {"tokens": golden_tokens(), "vqa": golden_vqa(sys.argv[1])}
    (GOLDEN / "texts.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")

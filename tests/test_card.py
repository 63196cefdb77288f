"""The model card: what stands in it follows from the experiment and its documents."""

import re
import shlex

from conftest import SMALL

from cm3leon_jax import config
from cm3leon_jax.arguments import parse
from cm3leon_jax.card import Made, card

MADE = Made({"CC0-1.0": 1200, "": 1}, 2, {"text.model": "sha256 0f", "clip": "ab"})


def write(**changes) -> str:
    return card(config.replace(config.Experiment(), SMALL | changes), MADE)


def test_the_card_has_every_section_and_counts_documents_by_licence():
    text = write()
    assert re.findall("^## (.*)", text, re.M) == [
        *("Intended use", "Data and licences", "Bias and limits", "How it was made", "Checksums"),
    ]
    assert "| CC0-1.0 | 1,200 |" in text
    assert "| not stated | 1 |" in text
    assert "2 records could not be read" in text
    assert "| text.model | `sha256 0f` |" in text


def test_the_card_tells_of_retrieval_tasks_and_a_start_where_there_are_some():
    plain = write()
    assert "memory/" not in plain
    assert "another model" not in plain
    told = write(
        **{"retrieval.most": 2, "data.tasks": ("edit", "question"), "train.start_from": "runs/a"}
    )
    assert "`memory/` holds the training documents" in told
    assert "tuned on: edit, question" in told
    assert "started from the parameters of another model" in told
    assert "runs/a" not in told


def test_the_commands_of_the_card_are_commands_with_retrieval_and_without():
    for most, stages in ((0, 4), (2, 6)):
        text = write(**{"retrieval.most": most, "data.source": "my pictures"})
        lines = re.findall("^cm3leon (.*)", text, re.M)
        assert len(lines) == stages
        verbs = [parse(None, shlex.split(line)).verb for line in lines]
        assert verbs[:2] == ["tokenizer", "tokenizer"]
        assert verbs[-1] == "train"

"""The paper's findings at small scale: units of work, verdicts, the page; two parts end to end."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, WORDS, make_documents, make_text
from PIL import Image as Pillow
from prepared import write_workdir

from benchmarks import claims
from benchmarks.claims import crossing, measures, page, verdicts
from benchmarks.claims.parts import PARTS, SEEDS, SETUPS, Claim, Setup
from benchmarks.claims.verdicts import Found, difference, judge, summarize
from benchmarks.claims.work import list_units
from cm3leon_jax import checkpoint, config
from cm3leon_jax.data import loader
from cm3leon_jax.data.examples import Examples, Source
from cm3leon_jax.decoding.generator import load
from cm3leon_jax.tokens.document import Document, Image, Text, spans
from cm3leon_jax.tokens.objective import code_places, draw_spans, restore, rng_for, rotate
from cm3leon_jax.tokens.vocabulary import BREAK, EOS, Vocabulary

TINY = SMALL | {
    "model.layers": 1,
    "mesh.fsdp": 1,
    "train.steps": 2,
    "train.save_every": 2,
    "data.held_out": 0.5,
}
# Parts (b) and (d) with fewer rows, so that one model is trained.
FEW = {
    "b": replace(
        PARTS["b"],
        rows={name: PARTS["b"].rows[name] for name in ("1", "1.5", "7")},
        claims=(Claim("pictures", "1.5", "1"),),
    ),
    "d": replace(
        PARTS["d"],
        rows={"base": {}, "again": {}},
        claims=(Claim("loss", "again", "base"),),
        sources=(),
    ),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts from beginning to end on random documents, with one seed."""
    place = tmp_path_factory.mktemp("claims")
    folder = place / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, word in enumerate(WORDS * 2):
        Pillow.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {word}")
    c = config.replace(config.Experiment(), TINY | {"data.source": str(folder)})
    prepared = write_workdir(place / "work" / "folder" / "prepared", c)
    checkpoint.write_json(prepared / "done.json", {})
    run(place, c)
    return place


def run(place: Path, c: config.Experiment, *more: str) -> None:
    given = ["--parts", "b", "d", "--seeds", "1", *more]
    places = ["--work", str(place / "work"), "--docs", str(place / "docs")]
    with pytest.MonkeyPatch.context() as patch:
        for letter, part in FEW.items():
            patch.setitem(PARTS, letter, part)
        patch.setattr(measures, "pool_features", mean_colours)
        patch.setattr(page, "MODELS", {"base": {}})  # others have retrieval
        claims.main([*given, *places], {"folder": Setup(c, 4, 4)})


def mean_colours(images: np.ndarray) -> np.ndarray:
    """Of pictures [B Y X 3], in place of EfficientNet's features."""
    return images.astype(np.float32).mean((1, 2))


def test_every_cell_of_a_part_is_answered_and_is_in_its_table(work: Path) -> None:
    made = [p.relative_to(work / "work/folder") for p in work.glob("work/*/*/answers/*")]
    assert sorted(path.as_posix() for path in made) == [
        "base-0/answers/decoded.json",
        "base-0/answers/loss.json",
        "base-0/answers/pictures.json",
        "base-0/answers/pictures_guidance=1.0_temperature=1.0_top_p=0.9.json",
        "base-0/answers/pictures_guidance=1.5_temperature=1.0_top_p=0.9.json",
        "base-0/answers/pictures_guidance=7.0_temperature=1.0_top_p=0.9.json",
    ]
    found = json.loads((work / "work/folder/base-0/answers/loss.json").read_text())["values"]
    assert all(np.isfinite(value["value"]) for value in found.values())
    written = (work / "docs/claims.md").read_text()
    assert written.count(f"| {found['loss']['value']:.3f} (one seed) |") == 2
    assert "| (d) Size of the model | not measured |" in written  # of one seed there is no interval
    assert "| (a) Retrieved documents in front of the prompt | not measured |" in written
    assert {p.name for p in (work / "docs").glob("*.svg")} >= {"claims_b.svg", "claims_d.svg"}


def test_distances_are_to_the_real_pictures_as_decoded(work: Path, monkeypatch) -> None:
    monkeypatch.setattr(measures, "pool_features", mean_colours)
    c = config.from_dict(json.loads((work / "work/folder/base-0/config.json").read_text()))
    generator = load(work / "work/folder/base-0/bundle")
    _, real = measures.held_out(c, 4)
    again = measures.decode_again(generator, real)
    assert abs(measures.score(generator, again, c)["value"]) < 1e-3
    assert measures.score(generator, real, c)["value"] > 1
    bound = json.loads((work / "work/folder/base-0/answers/decoded.json").read_text())
    assert bound["values"][""]["value"] == pytest.approx(measures.distance(again, real))


def test_a_second_run_makes_only_what_is_missing(work: Path) -> None:
    c = config.from_dict(json.loads((work / "work/folder/base-0/config.json").read_text()))
    results = [p for p in work.glob("work/*/*/*/*") if p.is_file()]
    gone = work / "work/folder/base-0/answers/loss.json"
    before = {p: p.stat().st_mtime_ns for p in results if p != gone}
    content = json.loads(gone.read_text())
    gone.unlink()
    run(work, c, "--budget", "0")
    assert not gone.exists()  # no unit is begun behind the budget
    run(work, c)
    assert json.loads(gone.read_text())["values"] == content["values"]
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_plan_lists_what_is_missing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = config.replace(config.Experiment(), TINY)
    run(work, c, "--plan")
    assert capsys.readouterr().out.endswith("0 of 8 units, estimated\n")
    run(work, c, "--plan", "--seeds", "2")
    assert "folder: train base-1\n" in capsys.readouterr().out


def test_the_page_of_the_shipped_parts_can_be_written_before_anything_is_measured(tmp_path) -> None:
    claims.main(["--report", "--work", str(tmp_path / "work"), "--docs", str(tmp_path)])
    written = (tmp_path / "claims.md").read_text()
    summary = [line for line in written.splitlines() if re.match(r"\| \(\w\) ", line)]
    assert len(summary) == len(PARTS)
    assert re.search(r"\| small, \de\+12 FLOPs \| not measured yet", written)
    assert all("| not measured |" in line for line in summary)
    rows = re.findall(r"^\| tuned \| .* \| ([\d,]+), \S+ \|  \|$", written, re.MULTILINE)
    assert len(rows) == 1  # emoji have no tasks


def test_answers_of_two_protocols_are_not_put_together(work: Path) -> None:
    (path,) = work.glob("work/folder/base-0/answers/pictures_guidance=1.5*")
    c = config.from_dict(json.loads((work / "work/folder/base-0/config.json").read_text()))
    content = path.read_text()
    try:
        path.write_text(content.replace('"size": 8', '"size": 16'))
        with pytest.raises(ValueError, match=r"size=8: .* pictures has 16; use the same to comp"):
            verdicts.read_table(work / "work/folder", FEW["b"], Setup(c, 4, 4), 1)
    finally:
        path.write_text(content)


def test_all_parts_have_the_rows_and_columns_that_they_claim_about() -> None:
    units = list_units(Path("work"), SETUPS, list(PARTS), SEEDS)
    assert len({unit.result for unit in units}) == len(units)
    for part in PARTS.values():
        for claim in part.claims:
            assert {claim.better, claim.worse} <= {*part.rows}
            assert {claim.column, claim.worse_column or claim.column} <= {*part.columns}


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ((0.5, 0.6), (0.3, 0.4), "shown"),
        ((0.3, 0.4), (0.5, 0.6), "the opposite"),
        ((0.3, 0.5), (0.4, 0.6), "not shown"),
        ((0.3, 0.4), (0.4, 0.6), "not shown"),  # they touch
        ((None, None), (0.5, 0.6), "not measured"),
    ],
)
def test_a_claim_is_shown_where_intervals_do_not_overlap(better, worse, verdict: str) -> None:
    one, other = (Found(0.4, *bounds, {}) for bounds in (better, worse))
    assert judge(one, other, is_larger_better=True) == verdict
    assert judge(other, one, is_larger_better=False) == verdict  # of losses less is better
    assert judge(one, None, is_larger_better=True) == "not measured"


def test_intervals_are_the_wider_of_answers_and_seeds() -> None:
    alike = summarize({seed: {"right": 50, "count": 100} for seed in range(3)})
    assert alike.low == pytest.approx(0.4438, abs=1e-4)  # Wilson's of 150 of 300
    apart = summarize({n: {"right": n, "count": 100} for n in (40, 50, 60)})
    assert apart.low == pytest.approx(0.5 - 4.302653 * 0.1 / 3**0.5)  # Student's, 2 degrees
    losses = summarize({seed: {"value": 1.0 + seed} for seed in range(3)})
    assert (losses.low, losses.high) == pytest.approx(
        (2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5)
    )
    assert summarize({4: {"value": 1.0}}) == Found(1.0, None, None, {4: 1.0})


def test_the_difference_of_two_values_is_that_of_their_seeds() -> None:
    one = summarize({0: {"value": 1.0}, 1: {"value": 5.0}, 2: {"value": 3.0}})
    other = summarize({2: {"value": 2.0}, 1: {"value": 4.0}, 3: {"value": 9.0}})
    assert difference(one, other) == Found(1.0, 1.0, 1.0, {1: 1.0, 2: 1.0})
    assert judge(one, other, is_larger_better=True) == "not shown"
    assert difference(one, summarize({7: {"value": 1.0}})) is None


@pytest.mark.parametrize(
    ("verdicts_of_claims", "told"),
    [
        (["shown", "shown"], "shown"),
        (["shown", "not shown", "not measured"], "shown for 1 of 3"),
        (["not shown", "the opposite"], "the opposite for 1 of 2"),
        (["shown", "shown", "the opposite"], "shown for 2 of 3, the opposite for 1 of 3"),
        (["not shown", "not measured"], "not measured"),
    ],
)
def test_a_part_has_one_verdict(verdicts_of_claims: list[str], told: str) -> None:
    assert verdicts.total(verdicts_of_claims) == told


def test_spans_across_breaks_keep_codes_at_their_places(small) -> None:
    vocabulary = Vocabulary.of(small.model)
    examples = crossing.AcrossBreaks(make_documents(small, 40), make_text(), small)
    across = 0
    for index in range(40):
        whole = examples.document(index, rng_for(0, 0, index)).to_ids(vocabulary)
        example = examples.example(index, rng_for(0, 0, index))
        last = np.flatnonzero(example.ids == EOS)[-1]
        across += BREAK in example.ids[last:]
        plain = sorted(i for i in example.ids if i in (EOS, BREAK) or i >= vocabulary.text_start)
        assert plain == sorted(whole)  # moved, and none lost
        codes = example.ids[example.codes_at >= 0]
        order = np.argsort(example.codes_at[example.codes_at >= 0])
        assert codes[order].tolist() == whole[code_places(whole, vocabulary) >= 0].tolist()
    assert across


def test_rows_read_within_have_spans_across_breaks(work: Path) -> None:
    c = config.replace(config.Experiment(), TINY)
    sources = [(Source("prepared", work / "work/folder/prepared"), 1.0)]
    with crossing.spans_across_breaks():
        batches = loader.token_batches(sources, make_text(), c)
    first = next(iter(batches))
    ends, breaks = first["tokens"] == EOS, first["tokens"] == BREAK
    behind = np.cumsum(ends, axis=1) % 2 == 0  # each document opens and closes with <eos>
    assert (behind & breaks).any()
    assert loader.Examples is Examples


def test_spans_within_segments_are_relocated_as_in_training(small) -> None:
    vocabulary, text = Vocabulary.of(small.model), make_text()
    ids = Document([Text(text.encode("a bad cab")), Image([1, 2, 3, 4])]).to_ids(vocabulary)
    rotated = rotate(ids, vocabulary, rng_for(0, 0, 1), small.objective)
    assert len(rotated) > len(ids)
    chosen = draw_spans(spans(ids, vocabulary), rng_for(0, 0, 1), small.objective)
    example = crossing.relocate_example(ids, chosen, vocabulary)
    assert example.ids.tolist() == rotated.tolist()
    assert example.codes_at.tolist() == code_places(rotated, vocabulary).tolist()
    assert restore(example.ids, vocabulary).tolist() == ids.tolist()


def test_pools_of_less_than_32_are_parts_of_the_one_that_was_drawn() -> None:
    class Painter:
        """Draws a picture of one value, which is also its score."""

        def images(self, prompts, n, candidates, return_scores, **how):
            values = [i + 100 * ("contrastive" in how) for i in range(n)][::-1]
            picture = lambda value: Pillow.fromarray(np.full((2, 2, 3), value, np.uint8))  # noqa: E731
            return [(picture(value), value) for _ in prompts for value in values]

    drawn, ranks = measures.candidates(Painter(), ["a", "b"], {})
    assert drawn.shape == (2, 32, 2, 2, 3)
    assert (drawn[..., 0, 0, 0] == ranks).all()
    assert sorted(ranks[0]) == list(range(32)) != list(ranks[0])

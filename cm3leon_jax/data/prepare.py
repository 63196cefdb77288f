"""The preparation: records -> pictures as codes, and vectors, part by part, as a Beam pipeline.

A part is read, opened, encoded and written by itself: memory does not grow with the collection, a
finished part is never made again, and the result is the same however many workers share the parts.

    documents/train-00000-of-00009.array_record   CodedRecords; held_out-... the same
    documents/train.vectors-00000-of-00009.npy    float16 [N 3 E]: document, text query, image query
    documents/part-00000-of-00009.json            what was read and skipped; written last in a part
    documents/skipped.txt                         what was left out; written last of all
"""

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cm3leon_jax import config
from cm3leon_jax.checkpoint import fingerprint, write_json
from cm3leon_jax.data import sources
from cm3leon_jax.data.collection import Example, open_example
from cm3leon_jax.data.examples import count_places, tell
from cm3leon_jax.data.instructions import find_task
from cm3leon_jax.data.networks import (
    open_image_tokenizer,
    open_retriever,
    open_text,
    require_result,
)
from cm3leon_jax.data.records import Record, Skipped, fail, is_held_out
from cm3leon_jax.data.shards import CodedRecord, Shards, finish_shards, write_part
from cm3leon_jax.data.structures import add_map
from cm3leon_jax.data.templates import TEMPLATES, Parts
from cm3leon_jax.fields import require
from cm3leon_jax.mapped import Mapped, finish_mapped, part_path, write_mapped_part
from cm3leon_jax.models.clip import (
    CLIP,
    document_vectors,
    draw_kept,
    embed_pictures,
    embed_texts,
    patches,
)
from cm3leon_jax.models.image_codes import encode_pictures
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.tokens.clip_text import ClipTokenizer
from cm3leon_jax.tokens.text import TextTokenizer

SIDES = ("train", "held_out")
CHUNK = 256  # records opened at once
Vectors = NDArray[np.float16]
SECRETS = ("key", "password", "secret", "token", "credential")


def prepare(
    experiment: config.Experiment, workdir: Path, pipeline_options: Sequence[str] = ()
) -> None:
    """Writes `documents/`. `pipeline_options` are Beam's own; the default is its DirectRunner.

    Every worker must see the work directory under the same path. Secrets do not belong in the
    options, which runners log and show: workers take them from their environment.
    """
    beam, PipelineOptions = _import_beam()
    folder = workdir / "documents"
    if (folder / "skipped.txt").exists():
        has_vectors = (folder / "train.vectors.json").exists()
        rule = f"{folder} was prepared without retrieval: remove it and run `cm3leon prepare` again"
        most = experiment.retrieval.most
        require(has_vectors or not most, "retrieval.most", most, rule)
        return
    for option in pipeline_options:
        name = option.split("=")[0].lstrip("-")
        if any(word in name.lower() for word in SECRETS):
            raise ValueError(f"--pipeline_options {name}: secrets belong in the environment")
    open_encoders(experiment, workdir)  # what is missing is said before there is a pipeline
    parts = sources.plan(experiment.data, experiment.image_tokenizer.size)
    run = partial(prepare_part, experiment, workdir, len(parts))
    options = PipelineOptions(["--runner=DirectRunner", *pipeline_options])
    with _progress(folder, len(parts)), beam.Pipeline(options=options) as pipeline:
        _ = pipeline | beam.Create(parts) | beam.Reshuffle() | "prepare" >> beam.Map(run)
    merge(experiment, workdir, len(parts))


@contextmanager
def _progress(folder: Path, parts: int) -> Iterator[None]:
    """A bar of the finished parts, whichever machine finishes them."""
    done = threading.Event()

    def watch() -> None:
        with tqdm(total=parts, desc="prepare", unit="parts") as bar:
            while True:
                is_last = done.wait(0.5)
                bar.update(len(list(folder.glob("part-?????-of-?????.json"))) - bar.n)
                if is_last:
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _import_beam() -> tuple[Any, Any]:
    """Beam and its options; its import warns of Google's client libraries, which are not needed.

    Errors of a part are raised; that they are logged too, with their traceback, helps nobody.
    """
    logging.disable(logging.WARNING)
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    finally:
        logging.disable(logging.NOTSET)
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    return beam, PipelineOptions


def check_records(experiment: config.Experiment) -> None:
    """Reads every record, opens its pictures and tells it, prints what is bad, counts and licences.

    How long documents are is not known before there is a text tokenizer.

    Raises ValueError when more than `data.max_bad_fraction` are bad.
    """
    data, size = experiment.data, experiment.image_tokenizer.size
    tolerant = replace(data, max_bad_fraction=0.999)  # so that all are listed
    skipped, kept, licenses, ids = Skipped(), Counter[str](), Counter[str](), set[int]()
    for part in sources.plan(tolerant, size):
        listed = len(skipped.reasons)
        for record in sources.read(part, tolerant, size, skipped):
            try:
                open_ways(experiment, record)
                if (id := hash_id(record.id)) in ids:
                    fail(
                        f"duplicate id {record.id!r}, which will stop the preparation: give another"
                    )
                ids.add(id)
            except ValueError as error:
                skipped.add(record.origin or record.id, str(error))
            else:
                kept[SIDES[is_held_out(record.group, data.held_out)]] += 1
                licenses[record.license or "not stated"] += 1
        print("".join(f"{reason}\n" for reason in skipped.reasons[listed:]), end="")
    counts = f"{kept['train']} documents to train on, {kept['held_out']} held out"
    print(f"{counts}, {len(skipped.reasons)} bad, {skipped.refused.total()} of other licences")
    print("licences:", ", ".join(f"{name} {n}" for name, n in licenses.most_common()))
    skipped.check(data.max_bad_fraction)


@dataclass(frozen=True)
class Encoders:
    """The networks of one work directory, opened once per process."""

    text: TextTokenizer
    image_tokenizer: VQGAN
    retriever: CLIP | None  # None without retrieval
    speller: TextTokenizer | ClipTokenizer  # of the retriever's texts

    @property
    def made_by(self) -> dict[str, str]:
        """Fingerprints, by which later stages know what their documents were made with."""
        networks = {"image_tokenizer": self.image_tokenizer, "retriever": self.retriever}
        return {name: fingerprint(net) for name, net in networks.items() if net is not None}


@lru_cache(maxsize=1)
def open_encoders(experiment: config.Experiment, workdir: Path) -> Encoders:
    """Opens the networks that the stages before this one have finished."""
    mesh = make_mesh(experiment.mesh)
    tokenizer = require_result(workdir, "image_tokenizer/network")
    text = open_text(workdir)
    retriever = None
    speller: TextTokenizer | ClipTokenizer = text
    if experiment.retrieval.most:
        folder = require_result(workdir, "retriever/network")
        retriever, speller = open_retriever(experiment, folder, mesh, text)
    images = open_image_tokenizer(experiment, tokenizer, mesh)
    return Encoders(text, images, retriever, speller)


def prepare_part(experiment: config.Experiment, workdir: Path, of: int, part: sources.Part) -> None:
    """Reads, encodes and writes one part of both sides, unless it is there already."""
    folder = workdir / "documents"
    summary = part_path(folder, "part", part.number, of, ".json")
    if summary.exists():
        return
    encoders, skipped = open_encoders(experiment, workdir), Skipped()
    records: dict[str, list[CodedRecord]] = {side: [] for side in SIDES}
    vectors: dict[str, list[Vectors]] = {side: [] for side in SIDES}
    examples = open_examples(experiment, encoders.text, part, skipped)
    while chunk := list(islice(examples, CHUNK)):
        coded = encode(encoders.image_tokenizer, chunk)
        found = embed(experiment, encoders, chunk) if encoders.retriever else [None] * len(chunk)
        for example, record, vector in zip(chunk, coded, found):
            side = SIDES[is_held_out(example.record.group, experiment.data.held_out)]
            records[side].append(record)
            vectors[side] += [] if vector is None else [vector]
    write = partial(write_mapped_part, folder, number=part.number, of=of)
    for side in SIDES:
        write_part(records[side], folder, side, part.number, of)
        write(f"{side}.ids", array=np.array([hash_id(r.id) for r in records[side]], np.uint64))
        if encoders.retriever:
            empty = np.zeros((0, 3, encoders.retriever.config.embedding), np.float16)
            write(f"{side}.vectors", array=np.stack(vectors[side]) if vectors[side] else empty)
    content = {
        "counts": {side: len(records[side]) for side in SIDES},
        "licenses": Counter(record.license for side in SIDES for record in records[side]),
        "skipped": skipped.to_dict(),
    }
    write_json(summary, content)


def open_examples(
    experiment: config.Experiment, text: TextTokenizer, part: sources.Part, skipped: Skipped
) -> Iterator[Example]:
    """The records of a part with their pictures; those that cannot be used go to `skipped`."""
    c, size = experiment, experiment.image_tokenizer.size
    for record in sources.read(part, c.data, size, skipped):
        try:
            example, ways = open_ways(c, record)
            documents = (tell(way, text).document for way in ways)
            places = max(count_places(document.segments) for document in documents)
            if places > c.data.row_length:
                fail(f"{places} tokens, data.row_length={c.data.row_length}: shorten it")
        except ValueError as error:
            skipped.add(record.origin or record.id, str(error))
            skipped.check_early(c.data.max_bad_fraction)
        else:
            yield example


def open_ways(c: config.Experiment, record: Record) -> tuple[Example, list[Parts]]:
    """A record with its pictures and its map, where the task makes one, and the ways to tell it.

    The codes in them are not those of the pictures. Raises ValueError for a record that cannot be
    used.
    """
    template = find_task(c.data.task).template
    example = add_map(open_example(record, c.image_tokenizer.size), template)
    unknown = np.zeros(c.model.image_tokens, np.int32)
    return example, TEMPLATES[template](example.coded(repeat(unknown)))


def encode(tokenizer: VQGAN, examples: Sequence[Example]) -> list[CodedRecord]:
    """The records with their pictures as codes."""
    images = [image for example in examples for image in example.images]
    codes = iter(encode_pictures(tokenizer, np.stack(images)) if images else ())
    return [example.coded(codes) for example in examples]


def embed(c: config.Experiment, encoders: Encoders, examples: Sequence[Example]) -> Vectors:
    """Vectors [B 3 E]: each document's, its text query's and its image query's.

    Queries leave out `retrieval.query_dropout` of their tokens (paper section 2.1). A document
    without a text or an image has a query of zeros there.
    """
    clip, share, seed = encoders.retriever, c.retrieval.query_dropout, c.data.seed
    assert clip is not None
    form = clip.config
    texts, shortened, pictures, kept = [], [], [], []
    for example in examples:
        for text in example.texts:
            pieces = encoders.speller.encode(text)[: form.text_tokens - 2]
            stays = draw_kept(len(pieces), share, seed, f"{example.id} text")
            texts.append(pieces)
            shortened.append([piece for piece, stay in zip(pieces, stays) if stay])
        for image in example.images:
            pictures.append(image)
            kept.append(draw_kept(patches(form), share, seed, f"{example.id} image"))

    def deal(vectors: NDArray[np.float32], counts: list[int]) -> list[NDArray[np.float32]]:
        return np.split(vectors, np.cumsum(counts)[:-1])

    def of_texts(rows: list[list[int]]) -> list[NDArray[np.float32]]:
        return deal(embed_texts(clip, rows), [len(example.texts) for example in examples])

    def of_images(keep: NDArray[np.bool_] | None) -> list[NDArray[np.float32]]:
        pixels = np.stack(pictures) if pictures else np.zeros((0, 1, 1, 3), np.uint8)
        vectors = embed_pictures(clip, pixels, keep) if pictures else embed_texts(clip, [])
        return deal(vectors, [len(example.images) for example in examples])

    nothing = [np.zeros((0, form.embedding), np.float32)] * len(examples)
    rows = (
        document_vectors(of_texts(texts), of_images(None)),
        document_vectors(of_texts(shortened), nothing),
        document_vectors(nothing, of_images(np.stack(kept) if kept else None)),
    )
    return np.stack(rows, axis=1).astype(np.float16)


def merge(experiment: config.Experiment, workdir: Path, of: int) -> None:
    """Makes sets of the finished parts; refuses too many bad records, and ids that come twice."""
    folder = workdir / "documents"
    summaries = [
        json.loads(part_path(folder, "part", number, of, ".json").read_text())
        for number in range(of)
    ]
    skipped = Skipped.from_dicts(summary["skipped"] for summary in summaries)
    skipped.check(experiment.data.max_bad_fraction)
    made_by = open_encoders(experiment, workdir).made_by
    for side in SIDES:
        finish_shards(folder, side, [s["counts"][side] for s in summaries], made_by)
        finish_mapped(folder, f"{side}.ids", of, {})
        if experiment.retrieval.most:
            finish_mapped(folder, f"{side}.vectors", of, made_by)
    check_ids(folder)
    licenses = sum((Counter(summary["licenses"]) for summary in summaries), Counter[str]())
    write_json(folder / "licenses.json", licenses)
    skipped.write(folder / "skipped.txt")


def check_ids(folder: Path) -> None:
    """Raises ValueError where two records have one id."""
    hashes = [Mapped(folder, f"{side}.ids")[:] for side in SIDES]
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    twice = values[counts > 1]
    if twice.size:
        side = SIDES[twice[0] not in hashes[0]]
        row = int(np.flatnonzero(hashes[SIDES.index(side)] == twice[0])[0])
        raise ValueError(
            f"{folder}: {twice.size} ids come twice, first {Shards(folder, side)[row].id!r};"
            " give every record its own, remove the folder and prepare again"
        )


def hash_id(id: str) -> int:
    """64 bits of an id."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "little")

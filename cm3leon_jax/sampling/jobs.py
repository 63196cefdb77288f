"""Batch jobs: one request a line, answered in batches, by any number of processes, resumable.

    FOLDER/ID-NUMBER.png     the pictures of a request
    FOLDER/results.jsonl     one line a request, written after its pictures
    FOLDER/skipped.txt       the lines that could not be answered, with the reason

Of several processes each answers every so-manieth line and writes its own files,
results-00001-of-00004.jsonl. A request that any of the files has is not answered again.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from tqdm import tqdm

from cm3leon_jax import processes
from cm3leon_jax.data.records import Skipped
from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.fields import require
from cm3leon_jax.sampling.answers import Answer, answer, complete, describe, write_png
from cm3leon_jax.sampling.requests import TASKS, Request, make_request

TOGETHER = 16  # requests that one call answers at most: what a kill may cost
TOLD = ("id", "bundle", "task", "request")  # of a request beside its answer
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Line(NamedTuple):
    """A good line of a batch job."""

    number: int  # from 1
    id: str
    request: Request


class Job(NamedTuple):
    """The lines of a batch job, good and bad ones."""

    name: str
    folder: Path  # where the paths of its pictures begin
    lines: list[Line]
    bad: dict[int, str]  # the reason by line number

    def share(self, process: int, of: int) -> "Job":
        """What one of several processes answers."""
        return self._replace(
            lines=[line for line in self.lines if (line.number - 1) % of == process],
            bad={n: reason for n, reason in self.bad.items() if (n - 1) % of == process},
        )


def read_job(source: str, task: str, defaults: Mapping[str, Any]) -> Job:
    """Reads a JSONL file, or standard input for '-'; empty lines are passed over.

    task and defaults stand in for what a line does not say. Paths of pictures are relative to the
    file. Raises ValueError where there is no line.
    """
    if source == "-":
        job = Job("stdin", Path(), [], {})
        _read(sys.stdin.buffer, task, defaults, job)
    else:
        job = Job(Path(source).name, Path(source).parent, [], {})
        with Path(source).open("rb") as file:
            _read(file, task, defaults, job)
    require(bool(job.lines or job.bad), "requests", source, "use a file with one request a line")
    return job


def _read(file: Iterable[bytes], task: str, defaults: Mapping[str, Any], job: Job) -> None:
    ids: set[str] = set()
    for number, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            line = _parse(text, number, task, defaults)
            require(line.id not in ids, "id", line.id, "use every id once")
        except ValueError as error:
            job.bad[number] = str(error)
        else:
            ids.add(line.id)
            job.lines.append(line)


def _parse(text: bytes, number: int, task: str, defaults: Mapping[str, Any]) -> Line:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"broken JSON: {error}") from None
    require(isinstance(content, dict), "line", content, 'use an object, {"id": ..., ...}')
    id, task = content.pop("id", None), content.pop("task", task)
    rule = "use up to 100 letters, digits and . _ - that begin with a letter or a digit"
    require(isinstance(id, str) and bool(SAFE_ID.fullmatch(id)), "id", id, rule)
    known = TASKS[task].fields if isinstance(task, str) and task in TASKS else ()
    usable = {name: value for name, value in defaults.items() if name in known}
    return Line(number, id, make_request(task, usable | content))


def run_job(open_bundle: Callable[[], Generator], job: Job, out: Path) -> None:
    """Answers what is not answered yet, and prints one line with the counts.

    All processes call it with the same arguments and one folder. Raises ValueError when every line
    is bad, or when the folder has the results of another bundle.
    """
    of = processes.count()
    me = jax.process_index() if of > 1 else 0
    out.mkdir(parents=True, exist_ok=True)
    results, skipped = _file(out, "results.jsonl", me, of), _file(out, "skipped.txt", me, of)
    _cut_torn_line(results)
    skipped.unlink(missing_ok=True)
    processes.wait_for_all("job begins")
    unseen = [i for i in range(of) if not _file(out, "results.jsonl", i, of).exists()]
    require(not unseen, "out", str(out), f"use a folder shared with the processes {unseen}")
    generator = open_bundle()
    bundle = generator.identity
    done, share = _read_results(out, bundle), job.share(me, of)
    waiting, bad = [], dict(share.bad)
    for line in share.lines:
        line = line._replace(request=complete(line.request, generator))
        if line.id not in done:
            waiting.append(line)
        elif done[line.id] != _tell(line, bundle):
            rule = f"use another id or folder, {out} has it with other fields"
            bad[line.number] = f"id={line.id!r}: {rule}"
    total = len(share.lines) + len(share.bad)
    before = total - len(waiting) - len(bad)
    with (
        results.open("a", encoding="utf-8") as file,
        tqdm(total=total, initial=total - len(waiting), unit="request", disable=me > 0) as bar,
    ):
        for line, found in _answers(generator, waiting, job.folder):
            if isinstance(found, ValueError):
                bad[line.number] = str(found)
            else:
                _write(line, found, bundle, out, file)
            bar.update()
    reasons = [f"{job.name}:{number}: {bad[number]}" for number in sorted(bad)]
    Skipped(total, reasons).write(skipped)
    # Collectives give up after half a minute, and processes may end hours apart: their last file
    # says that they are there.
    while not all(_file(out, "skipped.txt", i, of).exists() for i in range(of)):
        time.sleep(1)
    counts = processes.gather(np.array([total, before, len(bad)])).sum(0)
    _report(counts.tolist(), reasons, out)


def _file(out: Path, name: str, process: int, of: int) -> Path:
    stem, _, kind = name.partition(".")
    return out / (name if of == 1 else f"{stem}-{process:05}-of-{of:05}.{kind}")


def _report(counts: Sequence[int], reasons: Sequence[str], out: Path) -> None:
    """One line; raises ValueError where nothing could be answered."""
    total, before, bad = counts
    if bad == total:
        first = reasons[0] if reasons else "see the other processes"
        raise ValueError(f"all {total} requests are bad, listed in {out}/skipped*.txt: {first}")
    if processes.is_first():
        listed = f", {bad} bad, listed in {out}/skipped*.txt" if bad else ""
        print(f"{out}: {total - before - bad} requests answered, {before} before{listed}")


def _answers(
    generator: Generator, lines: Sequence[Line], folder: Path
) -> Iterator[tuple[Line, Answer | ValueError]]:
    """The answer to each line, or why there is none; neighbours of equal options go together."""
    size = generator.experiment.image_tokenizer.size
    for (task, _), same in groupby(lines, lambda line: (line.request.task, line.request.options)):
        most = TOGETHER if TASKS[task].lists else 1
        while group := list(islice(same, most)):
            good, opened = [], []
            for line in group:
                try:
                    opened.append(line.request.open(folder, size))
                    good.append(line)
                except ValueError as error:
                    yield line, error
            yield from zip(good, _answer_each(generator, opened))


def _answer_each(
    generator: Generator, requests: Sequence[Request]
) -> Sequence[Answer | ValueError]:
    """All at once, and where that is refused one by one, to find which of them is to blame."""
    if not requests:
        return []
    try:
        return answer(generator, requests)
    except ValueError as error:
        if len(requests) == 1:
            return [error]
        return [found for request in requests for found in _answer_each(generator, [request])]


def _write(line: Line, found: Answer, bundle: str, out: Path, file: TextIO) -> None:
    """The pictures first: a request whose line is there has them all."""
    content = _tell(line, bundle)
    if not TASKS[line.request.task].draws:
        content["text"] = found.text
    else:
        content["pictures"] = [f"{line.id}-{number}.png" for number in range(len(found.pictures))]
        if found.scores:
            content["scores"] = found.scores
        shared = describe(line.request, bundle) | {"id": line.id}
        for number, (name, image) in enumerate(zip(content["pictures"], found.pictures)):
            about = shared | {"number": str(number)}
            if found.scores:
                about["score"] = str(found.scores[number])
            write_png(out / name, image, about)
    file.write(json.dumps(content, ensure_ascii=False) + "\n")
    file.flush()


def _tell(line: Line, bundle: str) -> dict[str, Any]:
    fields = dict(line.request.fields)
    return {"id": line.id, "bundle": bundle, "task": line.request.task, "request": fields}


def _cut_torn_line(results: Path) -> None:
    """Makes the file, or cuts off the end of a line that a kill has left there."""
    with results.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _read_results(out: Path, bundle: str) -> dict[str, dict[str, Any]]:
    """What every file of results in the folder tells of each request, by id.

    A line that another process is just writing is passed over.
    """
    done = {}
    for path in sorted(out.glob("results*.jsonl")):
        for text in path.read_bytes().splitlines():
            try:
                content = json.loads(text)
            except ValueError:
                continue
            rule = f"use another folder than {out}, whose results are of bundle"
            require(content["bundle"] == bundle, "bundle", bundle, f"{rule} {content['bundle']}")
            done[content["id"]] = {name: content[name] for name in TOLD}
    return done

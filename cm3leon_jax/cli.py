"""`cm3leon VERB`: every stage of an experiment, sampling, evaluation and inspection.

Exit codes: 0 done, 2 bad input or a loss that is not finite, 130 Ctrl-C, 143 SIGTERM after a save
(the same command goes on), 1 anything else.

An experiment comes from `--config NAME [--config.FIELD=VALUE]`, from `--gin_file FILE
[--gin.FIELD=VALUE]`, or from the config.json of a work directory that an earlier stage began.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3leon_jax import config, presets, processes, recipes
from cm3leon_jax.arguments import parse
from cm3leon_jax.fields import to_flat

if TYPE_CHECKING:
    from cm3leon_jax.data.collection import Collection


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; exit code 2 and one line on bad input."""
    # XLA's CPU client logs compile-time noise at lower levels.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        experiment, rest = recipes.from_arguments(sys.argv[1:] if arguments is None else arguments)
        options = parse(__doc__, rest)
        if experiment is not None and options.verb in ("sample", "evaluate", "demo"):
            raise ValueError(f"{options.verb} takes its config from the bundle; leave --config out")
        options.experiment = experiment
        VERBS[options.verb](options)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"cm3leon: {error}", file=sys.stderr)
        return 2
    except processes.Preempted as end:
        if processes.is_first():
            print(f"cm3leon: {end}; the same command goes on from there", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("cm3leon: stopped; the same command goes on from the last checkpoint")
        return 130
    return 0


def _quickstart(options: argparse.Namespace) -> None:
    from cm3leon_jax.checkpoint import read_experiment
    from cm3leon_jax.quickstart import PRETRAINING, quickstart

    source = options.data or (options.experiment.data.source if options.experiment else "scenes")
    name = "quickstart" if source == "scenes" else Path(source).name
    workdir = options.workdir or Path("runs") / name
    given, begun = options.experiment, [workdir / PRETRAINING, workdir]
    if given is None and options.data is None:
        found = [folder for folder in begun if (folder / "config.json").exists()]
        given = read_experiment(found[0]) if found else None
    if given is None:
        usual = presets.for_source(source)
        given = presets.fast(usual) if options.fast else usual
    experiment = _with_data(given, options)
    scores = quickstart(experiment, workdir)["held_out"]
    print(json.dumps(scores, indent=2))
    print(f"open {workdir / 'report.html'}")


def _tokenizer(options: argparse.Namespace) -> None:
    from cm3leon_jax import picture_stages, stages

    _join(options)
    experiment, collection = _collect(options)
    if options.which == "text":
        stages.train_text_tokenizer(experiment, collection, options.workdir)
    else:
        picture_stages.train_image_tokenizer(experiment, collection, options.workdir)


def _prepare(options: argparse.Namespace) -> None:
    from cm3leon_jax import stages
    from cm3leon_jax.data.prepare import check_records, prepare

    experiment = _experiment(options)
    if options.task is not None:
        experiment = replace(experiment, data=replace(experiment.data, task=options.task))
    if options.check:
        check_records(experiment)
        return
    stages.open_workdir(experiment, options.workdir)
    prepare(experiment, options.workdir, shlex.split(options.pipeline_options))


def _retrieve(options: argparse.Namespace) -> None:
    from cm3leon_jax import stages

    _join(options)
    experiment = _experiment(options)
    stages.open_workdir(experiment, options.workdir)
    for side, shares in stages.retrieve(experiment, options.workdir).items():
        shown = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        if processes.is_first():
            print(f"{side}: {shown}")


def _train(options: argparse.Namespace) -> None:
    from cm3leon_jax import picture_stages, stages

    _join(options)
    if options.stage == "retriever":
        picture_stages.train_retriever(*_collect(options), options.workdir)
        return
    experiment = _experiment(options)
    if options.stage == "upscaler":
        collection = picture_stages.collect_large(experiment)
        stages.open_workdir(experiment, options.workdir)
        picture_stages.train_upscaler(experiment, collection, options.workdir)
        return
    stages.open_workdir(experiment, options.workdir)
    bundle = stages.train_transformer(experiment, options.workdir)
    if processes.is_first():
        print(f"bundle: {bundle}")


def _join(options: argparse.Namespace) -> None:
    """Joins the other processes, where there are some; what they compile is kept with the run."""
    if _has_places(options):
        processes.join(options.coordinator, options.processes, options.process)
    processes.keep_compiled(options.workdir / "compiled")


def _has_places(options: argparse.Namespace) -> bool:
    places = (options.coordinator, options.processes, options.process)
    return options.distributed or places != (None, None, None)


def _sample(options: argparse.Namespace) -> None:
    from cm3leon_jax.decoding.generator import load
    from cm3leon_jax.sampling.answers import answer_one
    from cm3leon_jax.sampling.jobs import read_job, run_job
    from cm3leon_jax.sampling.requests import TASKS, make_request, parse_box

    fields = _fields(options)
    if fields.get("boxes"):
        fields["boxes"] = [parse_box(box) for box in fields["boxes"]]
    if options.requests is None:
        request = make_request(options.task, fields)
        out = options.out or Path("grid.png")
        if not TASKS[options.task].draws and options.out:
            raise ValueError(f"--out {out}: leave it out, task {options.task} prints its text")
        if not out.resolve().parent.is_dir() or out.suffix.lower() != ".png":
            raise ValueError(f"--out {out}: name a .png file in a folder that exists")
        if _has_places(options):
            raise ValueError("--distributed: use it with --requests; one request needs one process")
        answer_one(load(options.bundle), request, out)
        return
    if options.out is None or (options.out.exists() and not options.out.is_dir()):
        raise ValueError(f"--out {options.out}: name a folder for the answers to --requests")
    if options.requests == "-" and _has_places(options):
        raise ValueError("--requests -: use a file, which every process can read")
    if "image" in fields:
        fields["image"] = str(Path(fields["image"]).absolute())
    job = read_job(options.requests, options.task, fields)
    if _has_places(options):
        processes.join(options.coordinator, options.processes, options.process)
    run_job(lambda: load(options.bundle), job, options.out)


def _demo(options: argparse.Namespace) -> None:
    from cm3leon_jax.decoding.generator import load
    from cm3leon_jax.demo.server import bind, check_installed, serve

    check_installed()
    with bind(options.port) as place:
        serve(load(options.bundle), place)


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of a request; the prompt is the question of an answer."""
    from cm3leon_jax.sampling.requests import FIELDS

    fields = {name: getattr(options, name) for name in FIELDS}
    if options.task == "answer" and options.question is None:
        fields |= {"question": options.prompt, "prompt": None}
    return {name: value for name, value in fields.items() if value is not None}


def _evaluate(options: argparse.Namespace) -> None:
    from cm3leon_jax.checkpoint import write_json
    from cm3leon_jax.data.collection import collect
    from cm3leon_jax.decoding.generator import load
    from cm3leon_jax.evaluation.run import evaluate, write_images

    if options.suite:
        _evaluate_suites(options)
        return
    unused = [f"--{name}" for name in OF_SUITES if getattr(options, name) is not None]
    unused += ["--resampling"] * (options.resampling != "pytorch-fid")
    unused += ["--distributed"] * _has_places(options)
    if unused:
        raise ValueError(f"{', '.join(unused)}: used with --suite only; name one, or leave it")
    if options.images and options.images.exists() and any(options.images.iterdir()):
        raise ValueError(f"--images {options.images}: is not empty; name a new folder")
    generator = load(options.bundle)
    experiment = _with_data(generator.experiment, options)
    collection = collect(experiment.data, experiment.image_tokenizer.size)
    result = evaluate(
        generator, collection, "held_out", options.count, options.seed, options.documents
    )
    print(json.dumps(result.scores, indent=2))
    if options.out:
        write_json(options.out, result.scores)
    if options.images:
        write_images(result, options.images)


OF_SUITES = (
    *("task", "split", "candidates", "reference", "inception", "clip"),
    *("style", "explain", "against"),
)


def _evaluate_suites(options: argparse.Namespace) -> None:
    from cm3leon_jax.decoding.generator import load
    from cm3leon_jax.evaluation.clip_score import Encoders
    from cm3leon_jax.evaluation.features import FeatureNetwork
    from cm3leon_jax.evaluation.results import evaluate_suites, list_suites, show
    from cm3leon_jax.evaluation.suites import Settings
    from cm3leon_jax.interop.clip import read_clip
    from cm3leon_jax.interop.inception import read_inception

    if options.out is None or options.images is not None:
        raise ValueError("--suite: name a folder for all that it makes with --out, not --images")
    if _has_places(options):
        processes.join(options.coordinator, options.processes, options.process)
    generator = load(options.bundle)
    data = _with_data(generator.experiment, options).data
    data = replace(data, task=options.task) if options.task else data
    names = [field.name for field in fields(Settings)]
    given = {name: getattr(options, name) for name in names if getattr(options, name, None)}
    if options.documents is not None:
        given["documents"] = options.documents
    if options.inception:
        given["network"] = FeatureNetwork(read_inception(options.inception), options.resampling)
    if options.clip:
        clip = read_clip(options.clip)
        given["encoders"] = Encoders(clip.name, clip.pictures, clip.texts)
    settings = Settings(**given | {"data": data, "seed": options.seed})
    suites = list_suites(generator, settings) if options.suite == "all" else [options.suite]
    results = evaluate_suites(generator, suites, settings, options.against)
    if results is not None:
        print(show(results, options.against))
        print(f"open {options.out / 'report.html'}")


def _convert(options: argparse.Namespace) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only shapes are computed
    from cm3leon_jax.interop.convert import Wishes, convert, from_torch

    if options.from_torch:
        from_torch(options.source, options.target)
        print(f"tensors: {options.target}")
        return
    layout = convert(options.source, options.target, Wishes(options.experiment, options.size))
    print(f"{layout}: {options.target}")


def _plan(options: argparse.Namespace) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs; a TPU here stays free
    from cm3leon_jax import plan

    experiment = options.experiment or (options.preset and presets.preset(options.preset))
    if experiment is None or (options.experiment and options.preset):
        raise ValueError("plan: name one experiment with --preset, --config or --gin_file")
    given = [f"--{name}" for name in ("rows", "search", "images") if getattr(options, name)]
    if len(given) > 1:
        raise ValueError(f"{', '.join(given)}: give one of them")
    if options.search:
        for line in plan.describe_search(experiment, options.topology):
            print(line, flush=True)
    elif options.images:
        found = plan.plan_decode(experiment, options.topology, options.images)
        print(plan.describe_decode(experiment, options.topology, found, options.images))
    else:
        chosen = plan.with_rows(experiment, options.topology, options.rows)
        found = plan.plan_training(chosen, options.topology)
        print(plan.describe_training(chosen, options.topology, found))


def _inspect(options: argparse.Namespace) -> None:
    from cm3leon_jax.checkpoint import read_experiment

    experiment = options.experiment
    if experiment is None:
        experiment = read_experiment(options.workdir) if options.workdir else presets.preset("tiny")
    if options.what == "config":
        for name, value in to_flat(experiment).items():
            print(f"{name} = {value!r}")
        return
    if options.what == "documents":
        _inspect_documents(experiment, options)
        return
    from cm3leon_jax.tokens.document import Document, Image, Text
    from cm3leon_jax.tokens.objective import statistics
    from cm3leon_jax.tokens.vocabulary import Vocabulary

    model = experiment.model
    pair = (Text((0,) * options.text_tokens), Image((0,) * model.image_tokens))
    document = Document(pair * options.documents)
    shares = statistics([document], Vocabulary.of(model), experiment.objective, options.rounds)
    print(
        f"{options.rounds} rows of {options.documents} caption-image pairs"
        f" ({options.text_tokens} + {model.image_tokens} tokens), {experiment.objective}"
    )
    for name, share in shares.items():
        print(f"  {name.replace('_', ' '):24} {share:7.2%}")


def _inspect_documents(experiment: config.Experiment, options: argparse.Namespace) -> None:
    from cm3leon_jax import stages
    from cm3leon_jax.evaluation.report import write_text

    if options.workdir is None:
        raise ValueError("--workdir: name the folder of a run whose documents are prepared")
    write_text(options.out, stages.show_documents(experiment, options.workdir, options.rows))
    print(f"open {options.out}")


def _collect(options: argparse.Namespace) -> "tuple[config.Experiment, Collection]":
    """The experiment, now that of the work directory, and its data, read."""
    from cm3leon_jax import stages
    from cm3leon_jax.data.collection import collect

    experiment = _experiment(options)
    collection = collect(experiment.data, experiment.image_tokenizer.size)
    stages.open_workdir(experiment, options.workdir)
    return experiment, collection


def _experiment(options: argparse.Namespace) -> config.Experiment:
    """From the command line, else from the work directory."""
    from cm3leon_jax.checkpoint import read_experiment

    if options.experiment is None and not (options.workdir / "config.json").exists():
        raise ValueError(f"{options.workdir} is new: name its experiment, --config or --gin_file")
    return _with_data(options.experiment or read_experiment(options.workdir), options)


def _with_data(experiment: config.Experiment, options: argparse.Namespace) -> config.Experiment:
    names = {"source": "data", "font": "font", "max_bad_fraction": "max_bad_fraction"}
    given = {field: getattr(options, name) for field, name in names.items()}
    changes = {field: value for field, value in given.items() if value is not None}
    if options.allow_licenses:
        changes["allow_licenses"] = tuple(options.allow_licenses)
    return replace(experiment, data=replace(experiment.data, **changes))


VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "quickstart": _quickstart,
    "tokenizer": _tokenizer,
    "prepare": _prepare,
    "retrieve": _retrieve,
    "train": _train,
    "sample": _sample,
    "demo": _demo,
    "evaluate": _evaluate,
    "convert": _convert,
    "plan": _plan,
    "inspect": _inspect,
}

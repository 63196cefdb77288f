"""What the command line understands: the verbs of `cm3leon` and the options of each."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm3leon_jax import presets
from cm3leon_jax.sampling.requests import TASKS

SUITES = (
    "coco_fid",
    "captions",
    "vqa",
    "scenes",
)  # of evaluation.suites, which takes longer to load
RECIPE = (
    "Also takes --config NAME [--config.FIELD=VALUE] or --gin_file FILE [--gin.FIELD=VALUE], with"
    " any field that `cm3leon inspect config` lists."
)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """All verbs with their options; a parsed line has its `verb`."""
    parser = argparse.ArgumentParser(prog="cm3leon", description=description)
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(
            name,
            help=summary,
            description=summary
            if name in ("sample", "evaluate", "demo")
            else f"{summary} {RECIPE}",
            epilog=f"example: {example}",
        )
        made.set_defaults(verb=name)
        return made

    def with_workdir(made: argparse.ArgumentParser) -> None:
        made.add_argument("--workdir", type=Path, required=True, help="folder of the run")

    def with_data(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--data",
            help="scenes, emoji, tfds:NAME, a folder of pictures and texts, a .jsonl, .csv or .tar"
            " file, or a pattern of tar files",
        )
        made.add_argument("--font", help="emoji font file; default: the installed Noto")
        made.add_argument(
            "--allow_licenses", nargs="+", metavar="NAME", help="keep only records under these"
        )
        made.add_argument(
            "--max_bad_fraction", type=float, help="unreadable records that are tolerated (0.01)"
        )

    def with_processes(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--distributed",
            action="store_true",
            help="one of several processes, each with the same command: Cloud TPU, GKE, Slurm",
        )
        made.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: of process 0")
        made.add_argument("--processes", type=_positive, metavar="N", help="elsewhere: how many")
        made.add_argument("--process", type=int, metavar="I", help="elsewhere: which, from 0")

    made = verb(
        "quickstart",
        "Everything, from pictures to a report.",
        "cm3leon quickstart --data emoji",
    )
    with_data(made)
    made.add_argument("--workdir", type=Path, help="default: runs/quickstart, runs/emoji, ...")
    made.add_argument(
        "--fast",
        action="store_true",
        help="a third of the data and steps, where no recipe is named",
    )

    made = verb(
        "tokenizer",
        "Train the text or the image tokenizer.",
        "cm3leon tokenizer image --config tiny --workdir runs/tiny",
    )
    made.add_argument("which", choices=("text", "image"))
    with_processes(made)
    with_workdir(made)
    with_data(made)

    made = verb(
        "prepare",
        "Read, check and tokenize a source.",
        "cm3leon prepare --check --data pictures --config tiny_folder --workdir runs/mine",
    )
    made.add_argument(
        "--task",
        metavar="NAME",
        action=_Task,
        help="how records are told, or the public dataset that is read; with --help behind it:"
        " where a person gets its files, under which licence (docs/instructions.md)",
    )
    made.add_argument("--check", action="store_true", help="only read and list what is bad")
    made.add_argument(
        "--pipeline_options",
        default="",
        metavar="OPTIONS",
        help='of Beam, such as "--runner=FlinkRunner --parallelism=64"; default: the DirectRunner',
    )
    with_workdir(made)
    with_data(made)

    made = verb(
        "retrieve",
        "Find the documents that belong in front of each prepared document.",
        "cm3leon retrieve --workdir runs/tiny",
    )
    with_processes(made)
    with_workdir(made)
    with_data(made)

    made = verb(
        "train",
        "Train the transformer on prepared documents, the retriever before they are prepared, or"
        " the upscaler, which enlarges pictures.",
        "cm3leon train --stage retriever --workdir runs/tiny",
    )
    kinds = ("transformer", "retriever", "upscaler")
    made.add_argument("--stage", choices=kinds, default="transformer")
    with_processes(made)
    with_workdir(made)
    with_data(made)

    made = verb(
        "sample",
        "Draw pictures, write captions, answer and edit, one request or a file of them.",
        'cm3leon sample runs/quickstart/bundle "a small red ring top left on white" --n 8',
    )
    _add_sampling(made)
    with_processes(made)

    made = verb(
        "demo",
        "A page for this machine's browser to try a bundle in (docs/demo.md).",
        "cm3leon demo runs/quickstart/bundle",
    )
    made.add_argument("bundle", help="folder of a bundle")
    made.add_argument("--port", type=int, default=7860, help="of 127.0.0.1; 0: any that is free")

    made = verb(
        "evaluate",
        "Score a bundle on its held-out documents, or by suites with a written protocol.",
        "cm3leon evaluate runs/mine/bundle --suite captions --data my_folder --out scores",
    )
    made.add_argument("bundle", help="folder of a bundle")
    made.add_argument("--count", type=_positive, default=512, help="documents scored")
    made.add_argument("--documents", type=int, help="retrieved documents in front of each")
    made.add_argument("--seed", type=int, default=0)
    with_data(made)
    made.add_argument(
        "--out", type=Path, help="JSON file for the scores; of --suite, the folder of its work"
    )
    made.add_argument("--images", type=Path, help="folder for the pictures, as FID tools want them")
    _add_suites(made)
    with_processes(made)

    made = verb(
        "convert",
        "Read the weights of others into a bundle or a work directory, or write a bundle for them.",
        "cm3leon convert chameleon-7b runs/chameleon",
    )
    made.add_argument(
        "source",
        type=Path,
        metavar="FROM",
        help="folder or .safetensors file; a bundle of Chameleon's form goes to transformers",
    )
    made.add_argument("target", type=Path, metavar="TO", help="a new folder")
    made.add_argument(
        "--from_torch",
        action="store_true",
        help="make TO.safetensors of a .ckpt, .pt or .pth, in a process that reads only tensors",
    )
    made.add_argument(
        "--size", type=_positive, help="pixels a side of an image tokenizer's pictures (256)"
    )

    made = verb(
        "plan",
        "Compile the training step for TPU chips that are not there: memory, collectives, days.",
        "cm3leon plan --preset 7b --topology v5p:4x4x8",
    )
    made.add_argument("--preset", choices=sorted(presets.PRESETS), help="the experiment")
    made.add_argument(
        "--topology", required=True, help="chips, such as v5e:16x16, v5p:4x4x8, '2 x v5p:4x4x8'"
    )
    made.add_argument("--rows", type=_positive, help="rows a chip at once; changes accumulation")
    made.add_argument("--search", action="store_true", help="try remat policies and rows")
    made.add_argument("--images", type=_positive, help="plan drawing so many images instead")

    made = verb(
        "inspect",
        "Show what training sees.",
        "cm3leon inspect objective --config 350m --documents 4",
    )
    made.add_argument("what", choices=("objective", "config", "documents"))
    made.add_argument("--workdir", type=Path, help="folder of a run: its documents, its config")
    made.add_argument("--rows", type=_positive, default=8, help="documents: rows of the page")
    made.add_argument("--out", type=Path, default=Path("documents.html"), help="documents: page")
    made.add_argument("--documents", type=_positive, default=1, help="caption-image pairs in a row")
    made.add_argument("--rounds", type=_positive, default=2000, help="rows drawn")
    made.add_argument("--text_tokens", type=_positive, default=9, help="tokens of a caption")
    return parser


def parse(description: str | None, arguments: Sequence[str]) -> argparse.Namespace:
    """One command line; a prompt may stand behind options.

    Python 3.11 gives a subcommand's optional positional up before it has seen the whole line.
    """
    parser = make_parser(description)
    options, rest = parser.parse_known_args(arguments)
    if options.verb == "sample" and options.prompt is None and rest and rest[0][:1] != "-":
        options.prompt = rest.pop(0)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _add_sampling(made: argparse.ArgumentParser) -> None:
    """The options of `sample`; those named like a field of a request are None where not given."""
    made.add_argument("bundle", help="folder of a bundle")
    made.add_argument("prompt", nargs="?", help="the text; of the task answer, the question")
    made.add_argument("--task", choices=tuple(TASKS), default="images")
    made.add_argument("--n", type=int, help="images: how many (1)")
    made.add_argument("--documents", type=int, help="retrieved documents in front")
    for name in ("guidance", "temperature", "top_p"):
        made.add_argument(f"--{name}", type=float)
    made.add_argument("--top_k", type=int)
    made.add_argument(
        "--guidance_interval",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="images: guide between these shares of the image only, 0 to 1",
    )
    made.add_argument(
        "--repetition_penalty", type=float, help="caption, answer: of pieces drawn before"
    )
    made.add_argument(
        "--speculative", action="store_true", default=None, help="images: in fewer, larger steps"
    )
    made.add_argument("--contrastive", type=int, metavar="K", help="images: CD-K instead of top_p")
    made.add_argument(
        "--candidates", type=int, metavar="M", help="images: keep the n best of M by CLIP"
    )
    made.add_argument(
        "--mixed", action="store_true", default=None, help="candidates: half top_p, half CD-K"
    )
    made.add_argument(
        "--upscale", action="store_true", default=None, help="pictures: enlarged by the upscaler"
    )
    made.add_argument("--image", metavar="FILE", help="all but images and boxes: the picture")
    made.add_argument("--question", help="answer: the same as PROMPT")
    made.add_argument("--explain", action="store_true", default=None, help="answer: with reasons")
    made.add_argument("--style", help="caption: short or long")
    made.add_argument("--kind", help="structure: what the picture is a map of, such as edges")
    made.add_argument("--guidance_image", type=float, help="edit: guidance by the picture")
    made.add_argument("--guidance_text", type=float, help="edit: guidance by the instruction")
    made.add_argument(
        "--box",
        dest="boxes",
        action="append",
        metavar="NAME:X0,Y0,X1,Y1",
        help="boxes: a thing and its place in pixels; as often as there are things",
    )
    made.add_argument("--seed", type=int, help="0 where not given")
    made.add_argument(
        "--requests",
        metavar="FILE",
        help="JSONL, one request a line, or - for standard input; options are their defaults",
    )
    made.add_argument("--out", type=Path, help="PNG file (grid.png); of --requests, a folder")


class _Task(argparse.Action):
    """Keeps the name of a task; the help of its verb then says where its data comes from."""

    def __call__(
        self, parser: argparse.ArgumentParser, options: argparse.Namespace, value: Any, *_: Any
    ) -> None:
        from cm3leon_jax.data.instructions import describe

        parser.epilog = describe(value)
        options.task = value


def _add_suites(made: argparse.ArgumentParser) -> None:
    """The options of `evaluate --suite`, named like the fields of its settings."""
    made.add_argument("--suite", choices=(*SUITES, "all"), help="what is scored; needs --out")
    made.add_argument("--against", type=Path, metavar="FILE", help="another results.json")
    made.add_argument("--split", choices=("held_out", "all"), help="of --data (held_out)")
    made.add_argument("--candidates", type=_positive, metavar="M", help="coco_fid: best of M")
    made.add_argument("--reference", type=Path, help="coco_fid: folder of pictures, or .npz")
    made.add_argument("--inception", type=Path, metavar="FILE", help="coco_fid: weights of FID")
    made.add_argument("--clip", type=Path, metavar="FOLDER", help="coco_fid: a published CLIP")
    made.add_argument(
        "--resampling", choices=("pytorch-fid", "torch-fidelity"), default="pytorch-fid"
    )
    made.add_argument("--style", help="captions: short or long")
    made.add_argument("--explain", action="store_true", default=None, help="vqa: with reasons")
    made.add_argument("--task", metavar="NAME", help="how --data is read: coco_captions, vqa2, ...")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: use a whole number of at least 1")
    return int(text)

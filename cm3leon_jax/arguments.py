"""What the command line understands: the verbs of `cm3leon` and the options of each."""

import argparse
from pathlib import Path

from cm3leon_jax import presets

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
            description=summary if name in ("sample", "evaluate") else f"{summary} {RECIPE}",
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
        "Train the transformer on prepared documents, or the retriever before they are prepared.",
        "cm3leon train --stage retriever --workdir runs/tiny",
    )
    made.add_argument("--stage", choices=("transformer", "retriever"), default="transformer")
    with_processes(made)
    with_workdir(made)
    with_data(made)

    made = verb(
        "sample",
        "Draw pictures for a prompt.",
        'cm3leon sample runs/quickstart/bundle "a small red ring top left on white" --n 8',
    )
    made.add_argument("bundle", help="folder of a bundle")
    made.add_argument("prompt")
    made.add_argument("--n", type=int, default=1, help="pictures")
    made.add_argument("--documents", type=int, help="retrieved documents in front of the prompt")
    made.add_argument("--guidance", type=float)
    made.add_argument("--temperature", type=float)
    made.add_argument("--top_p", type=float)
    made.add_argument("--top_k", type=int)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path("grid.png"))

    made = verb(
        "evaluate",
        "Score a bundle on its held-out documents.",
        "cm3leon evaluate runs/quickstart/bundle --count 512",
    )
    made.add_argument("bundle", help="folder of a bundle")
    made.add_argument("--count", type=_positive, default=512, help="documents scored")
    made.add_argument("--documents", type=int, help="retrieved documents in front of each")
    made.add_argument("--seed", type=int, default=0)
    with_data(made)
    made.add_argument("--out", type=Path, help="JSON file for the scores")
    made.add_argument("--images", type=Path, help="folder for the pictures, as FID tools want them")

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
    made.add_argument("--workdir", type=Path, help="documents: folder of the run")
    made.add_argument("--rows", type=_positive, default=8, help="documents: rows of the page")
    made.add_argument("--out", type=Path, default=Path("documents.html"), help="documents: page")
    made.add_argument("--documents", type=_positive, default=1, help="caption-image pairs in a row")
    made.add_argument("--rounds", type=_positive, default=2000, help="rows drawn")
    made.add_argument("--text_tokens", type=_positive, default=9, help="tokens of a caption")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: use a whole number of at least 1")
    return int(text)

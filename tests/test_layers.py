"""The house rule: imports go down only, heavy packages stay inside functions, files stay small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cm3leon_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]

# Top to bottom. A room imports itself and the rows below, never its neighbours in a row.
ROWS = (
    ("cli",),
    ("quickstart", "arguments"),
    ("stages", "picture_stages", "sampling", "demo"),
    ("bundle", "start"),
    ("evaluation", "interop", "plan"),
    ("training", "decoding"),
    ("data", "retrieval"),
    ("models", "checkpoint", "mapped"),
    ("tokens",),
    ("sharding", "chips", "presets", "recipes", "processes", "card"),
    ("config",),
    ("network_config",),
    ("fields", "version"),
)
DEPTH = {room: depth for depth, row in enumerate(ROWS) for room in row}
HEAVY = {
    "tensorflow", "tensorflow_datasets", "seqio", "apache_beam", "gin", "torch", "transformers",
    "t5x", "orbax", "tensorboardX", "sentencepiece", "faiss", "grain", "qwix", "pyarrow", "skimage",
    "gradio", "fastapi", "starlette", "uvicorn",
}  # fmt: skip
LEAF = {"numpy", *sys.stdlib_module_names}  # what a room without JAX may import at module level
GONE = ("jax.experimental.pjit", "with mesh:", "nnx.jit")


def imports(tree: ast.Module, everywhere: bool) -> Iterator[str]:
    """Dotted names that a module imports; `everywhere` includes the bodies of functions."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes.extend(ast.iter_child_nodes(node))


def upward(room: str, source: str) -> list[str]:
    """Imports of `source`, a module of `room`, that break the order of ROWS."""
    found = (name.split(".") for name in imports(ast.parse(source), everywhere=True))
    ours = [(parts[1] if len(parts) > 1 else "", parts) for parts in found]
    return [
        ".".join(parts)
        for target, parts in ours
        if parts[0] == "cm3leon_jax"
        and target != room
        and (target not in DEPTH or DEPTH[target] <= DEPTH[room])
    ]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_go_down_only(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room != "__init__":  # the public names come from wherever they live
        assert room in DEPTH, f"{room} is a new room: give it a row"
        assert upward(room, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("training", "from cm3leon_jax.decoding.engine import Prompts"),
        ("decoding", "from cm3leon_jax import training"),
        ("tokens", "def f():\n    import cm3leon_jax.models.vqgan"),
        ("config", "import cm3leon_jax"),
        ("interop", "from cm3leon_jax.evaluation import fid"),
    ],
)
def test_the_rule_catches_upward_imports(room, line):
    assert len(upward(room, line)) == 1


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_heavy_packages_are_imported_inside_functions(path):
    names = imports(ast.parse(path.read_text(encoding="utf-8")), everywhere=False)
    assert {name.split(".")[0] for name in names} & HEAVY == set()


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if path.parent.name == "tokens" or path.stem in ("config", "network_config", "fields")
    ],
)
def test_the_language_needs_numpy_only(path):
    names = imports(ast.parse(path.read_text(encoding="utf-8")), everywhere=False)
    allowed = LEAF | {"cm3leon_jax"}  # `config` and `tokens`, by the rule above
    assert {name.split(".")[0] for name in names} <= allowed


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_are_small_and_use_current_names(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    assert [name for name in GONE if name in source] == []


def test_every_room_says_what_it_is():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_importing_the_package_loads_little_more_than_jax_and_flax():
    def loaded(statement: str) -> set[str]:
        code = f"{statement}; import sys; print(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        return set(done.stdout.split())

    ours = loaded("import cm3leon_jax")
    assert {name.split(".")[0] for name in ours} & HEAVY == set()
    assert len(ours) < 1.2 * len(loaded("import jax; from flax import nnx"))

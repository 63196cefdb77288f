"""Recipes: the two front ends, gin and ml_collections, of one `config.Experiment`.

A recipe is a file, given by its path or by its name among the shipped ones (`gin/` and `configs/`
of a checkout; the same folders inside the installed package):

    --gin_file models/350m.gin --gin.train.steps=10
    --config tiny --config.train.steps=10

A model and a run of it are two gin files, `--gin_file models/7b.gin --gin_file runs/sft.gin`, or
one ConfigDict recipe and its argument, `--config sft:7b`.

Both kinds of override name a field by its dotted path in the Experiment; the value is read by the
type of that field, so that strings need no quotes. In a gin file the scope of a binding is the
place of the part (`image_tokenizer/config.ImageTokenizer.codes = 8192`); `gin/experiment.gin`,
which every shipped file includes, wires the places to the one root, `config.Experiment`.
"""

import ast
import contextlib
import copy
import dataclasses
import difflib
import re
import runpy
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cm3leon_jax import config
from cm3leon_jax.config import Experiment

Kind = Literal["gin", "configs"]
SUFFIX: dict[Kind, str] = {"gin": ".gin", "configs": ".py"}


def find(name: str, kind: Kind) -> Path:
    """The file of a recipe, by path or by shipped name; the suffix may be left out.

    Raises ValueError naming the nearest shipped recipes.
    """
    shipped = folder(kind)
    for base in (Path(), shipped):
        for candidate in (base / name, base / f"{name}{SUFFIX[kind]}"):
            if candidate.is_file():
                return candidate
    known = sorted(p.relative_to(shipped).as_posix() for p in shipped.rglob(f"*{SUFFIX[kind]}"))
    same = [entry for entry in known if Path(entry).stem == Path(name).stem]
    hint = f"did you mean {same[0]}?" if same else nearest(name, known)
    raise ValueError(f"recipe {name!r}: no such file or shipped recipe; {hint}")


def folder(kind: Kind) -> Path:
    """Where the shipped recipes lie: inside the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / kind
    return installed if installed.is_dir() else package.parent / kind


def from_arguments(arguments: Sequence[str]) -> tuple[Experiment | None, list[str]]:
    """Takes the recipe out of a command line; returns it and the arguments that remain.

    Understands `--gin_file`, `--gin.FIELD`, `--config` and `--config.FIELD`, each with its value
    after '=' or as the next argument. The experiment is None where the command line names none.
    """
    files: list[str] = []
    names: list[str] = []
    overrides: dict[str, dict[str, str]] = {"gin": {}, "config": {}}
    rest = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        found = re.fullmatch(r"--(gin_file|config|(gin|config)\.([^=]+))(=.*)?", argument, re.S)
        if not found:
            rest.append(argument)
            continue
        flag, front, field, value = found.groups()
        if value is None and not queue:
            raise ValueError(f"{argument}: expects a value")
        value = queue.pop(0) if value is None else value[1:]
        if front:
            overrides[front][field] = value
        else:
            (files if flag == "gin_file" else names).append(value)
    if len(names) > 1 or (names and files):
        raise ValueError("an experiment has one recipe: give --gin_file (any number) or --config")
    for front, flag, given in (("gin", "gin_file", files), ("config", "config", names)):
        if overrides[front] and not given:
            raise ValueError(f"--{front}.{min(overrides[front])}: needs a recipe, --{flag} NAME")
    if files:
        return from_gin(files, overrides["gin"]), rest
    return (from_config(names[0], overrides["config"]) if names else None), rest


def from_config(name: str, overrides: Mapping[str, str] | None = None) -> Experiment:
    """The Experiment of a ConfigDict recipe, a Python file with `get_config()`.

    "NAME:ARGUMENT" calls `get_config(ARGUMENT)`. Raises ValueError naming file and field, with the
    nearest known ones.
    """
    name, *arguments = name.split(":")
    path = find(name, "configs")
    try:
        recipe = runpy.run_path(str(path))
        config.require("get_config" in recipe, "recipe", path.name, "defines no get_config()")
        experiment = config.from_dict(recipe["get_config"](*arguments).to_dict())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {_reason(error)}") from error
    return _override(experiment, overrides or {})


def _reason(error: BaseException) -> str:
    """The message of a locked ConfigDict, which names the nearest field, as one line."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(re.sub(r"Other fields present: .*\n", "", text).split())


def from_gin(files: Sequence[str], overrides: Mapping[str, str] | None = None) -> Experiment:
    """The Experiment that gin files bind, later ones over earlier ones.

    gin's configuration is process-wide: it is empty before and after.
    Raises ValueError naming file and field, with the nearest known ones.
    """
    with fresh_gin() as gin:
        for path in [find(name, "gin") for name in files]:
            try:
                gin.parse_config_file(str(path))
            except Exception as error:  # gin raises many kinds; all mean a line it cannot use
                raise ValueError(_explain(path, error)) from error
        try:
            experiment = config.from_dict(_bindings(gin))
        except ValueError as error:
            raise ValueError(f"{' '.join(files)}: {error}") from error
    return _override(experiment, overrides or {})


@contextlib.contextmanager
def fresh_gin() -> Iterator[Any]:
    """The gin library without bindings, whose files and includes are found by `find`."""
    import gin

    reader = (lambda name: find(name, "gin").open(), lambda name: True)
    gin.clear_config()
    gin.config._FILE_READERS.insert(0, reader)  # gin's own log an error for every folder they try
    try:
        yield gin
    finally:
        gin.config._FILE_READERS.remove(reader)
        gin.clear_config()


def _explain(path: Path, error: Exception) -> str:
    """One line for what gin raised while it read the file at `path`: place, reason, nearest."""
    text = str(error)
    where = re.search(r'In file "(.*)", line (\d+)', text)
    place = ":".join(where.groups()) if where else path
    message = text.splitlines()[0]
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
        token = re.search(r"parse token '(.*)'", text)
        message = f"cannot read {token[1]}; strings need quotes" if token else error.msg
    elif found := re.search(r"\.(\w+)' doesn't have a parameter named '(\w+)'", text):
        kind, field = found.groups()
        known = [entry.name for entry in dataclasses.fields(getattr(config, kind))]
        message = f"{kind} has no field {field!r}; {nearest(field, known)}"
    elif found := re.search(r"Couldn't resolve selector config\.(\w+)", text):
        known = [key for key, value in vars(config).items() if dataclasses.is_dataclass(value)]
        message = f"config has no {found[1]!r}; {nearest(found[1], known)}"
    return f"{place}: {message}"


def _bindings(gin: Any) -> dict[str, Any]:
    """What gin has bound, as nested dict; every binding must belong to a part that is wired."""
    bound = gin.config._CONFIG  # {(scope, selector): {field: value}}; gin has no public view
    bound = {key: values for key, values in bound.items() if key[1] != "gin.macro"}
    if not any(_name(selector) == "Experiment" for _, selector in bound):
        raise ValueError('no root config.Experiment is bound; add: include "experiment.gin"')
    seen: set[tuple[str, str]] = set()
    content = _read(gin, Experiment, [], seen)
    for scope, selector in bound:
        if (scope, _name(selector)) not in seen:
            places = [place for place, name in seen if name == _name(selector) and place]
            here = f"{scope}/config.{_name(selector)}".lstrip("/")
            raise ValueError(f"{here}: not a place in the experiment; {nearest(scope, places)}")
    return content


def _read(gin: Any, kind: Any, scopes: list[str], seen: set[tuple[str, str]]) -> dict[str, Any]:
    """Bindings of the part at `scopes` and, through its references, of the parts below."""
    seen.update(("/".join(scopes[:depth]), kind.__name__) for depth in range(len(scopes) + 1))
    with gin.config_scope(scopes or None):
        bindings = gin.get_bindings(kind, resolve_references=False)
    content = {}
    for name, value in bindings.items():
        part = getattr(getattr(value, "configurable", None), "wrapped", None)
        if dataclasses.is_dataclass(part):
            content[name] = _read(gin, part, value.scopes, seen)
            continue
        try:
            content[name] = copy.deepcopy(value)  # which is how gin evaluates macros
        except TypeError as error:
            raise ValueError(f"{kind.__name__}.{name} = {value}: not defined") from error
    return content


def _override(experiment: Experiment, overrides: Mapping[str, str]) -> Experiment:
    """Dotted fields with values as written on a command line."""
    return config.replace(experiment, {name: _value(name, overrides[name]) for name in overrides})


def _value(name: str, text: str) -> Any:
    """`text` by the type of the field `name`; unreadable text stays and fails the type check."""
    hint: Any = Experiment
    for part in name.split("."):
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    if hint is str or (choices and isinstance(choices[0], str)):
        return text[1:-1] if re.fullmatch(r"'.*'|\".*\"", text, re.S) else text
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    is_one = typing.get_origin(hint) is tuple and not isinstance(value, list | tuple)
    return (value,) if is_one else value


def _name(selector: str) -> str:
    return selector.rpartition(".")[2]


def nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"

"""Frozen dataclasses of fields: their rules, and their form as plain nested dicts."""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, Literal


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raises ValueError 'name=value: rule' unless `holds`."""
    if not holds:
        raise ValueError(f"{name}={value!r}: {rule}")


def require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    require(value in choices, name, value, f"use one of {', '.join(map(repr, choices))}")


def to_dict(value: Any) -> dict[str, Any]:
    """Nested dict of an experiment or a part of it; tuples become lists, ready for JSON."""
    content = {}
    for entry in dataclasses.fields(value):
        item = getattr(value, entry.name)
        if dataclasses.is_dataclass(item):
            item = to_dict(item)
        content[entry.name] = list(item) if isinstance(item, tuple) else item
    return content


def to_flat(value: Any) -> dict[str, Any]:
    """All fields by dotted names, {'train.steps': 10, ...}."""

    def flat(content: Mapping[str, Any], path: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in content.items():
            nested = isinstance(value, Mapping)
            values |= flat(value, f"{path}{name}.") if nested else {f"{path}{name}": value}
        return values

    return flat(to_dict(value), "")


def build(default: Any, content: Mapping[str, Any], path: str = "") -> Any:
    """Inverse of `to_dict`: the dataclass `default` with the fields of `content` in place.

    Raises ValueError for unknown keys, naming the nearest known one, and for wrong types.
    """
    hints = typing.get_type_hints(type(default))
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{path}{key}"
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {path}{near[0]}?" if near else f"known: {', '.join(hints)}"
            raise ValueError(f"{name}: unknown config key; {hint}")
        if dataclasses.is_dataclass(hints[key]):
            require(isinstance(value, Mapping), name, value, "must be a mapping of fields")
            values[key] = build(getattr(default, key), value, f"{name}.")
        else:
            values[key] = _convert(value, hints[key], name)
    return dataclasses.replace(default, **values)


def _convert(value: Any, hint: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        require(isinstance(value, list | tuple), name, value, "must be a list")
        return tuple(_convert(item, typing.get_args(hint)[0], name) for item in value)
    kind = type(typing.get_args(hint)[0]) if origin is Literal else hint
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    holds = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    require(holds, name, value, f"must be of type {kind.__name__}")
    return value

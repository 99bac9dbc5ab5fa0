"""TOML tables -> frozen dataclasses: every key is a field, an unknown or impossible one is an error that names it."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from detector.errors import ConfigError

T = TypeVar("T")

_NAMES = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError naming the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(str(path), f"is not TOML ({error})") from error
    except RecursionError:
        raise ConfigError(str(path), "is nested too deeply") from None


def build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table; `where` names the file in errors. Raises ConfigError naming the dotted key."""
    return typing.cast(T, _build(kind, table, where, ""))


def closest(name: str, known: Iterable[str]) -> str:
    """What to do about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _build(kind: Any, value: Any, where: str, key: str) -> Any:
    """A value of the annotated type."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _table(kind, value, where, key)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # X | None: what is not given is None
        return _build(inner[0], value, where, key)
    if origin is tuple:
        tables = dataclasses.is_dataclass(inner[0])
        names = "tables" if tables else f"{'two ' if inner[-1] is not Ellipsis else ''}values, each {_NAMES[inner[0]]}"
        if not isinstance(value, (list, tuple)) or (inner[-1] is not Ellipsis and len(value) != len(inner)):
            raise ConfigError(where, f"{key} must be a list of {names}, not {_kind(value)}", f"write [[{key}]]" if tables else "")
        return tuple(_build(inner[0], item, where, key) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(where, f"{key} must be a table, not {_kind(value)}", f"write [{key}.NAME]")
        return types.MappingProxyType({name: _build(inner[1], item, where, _join(key, name)) for name, item in value.items()})
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 64 else float("inf")
    if type(value) is not kind or value in (float("inf"), float("-inf")) or value != value:
        raise ConfigError(where, f"{key} must be {_NAMES[kind]}, not {_kind(value)}")
    return value


def _table(kind: Any, value: Any, where: str, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(where, f"{key} must be a table, not {_kind(value)}", f"write [{key}]")
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            fix = closest(name, hints)
            raise ConfigError(where, f"unknown key {_join(key, name)}", fix.replace("mean ", f"mean {key}.") if key else fix)
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in value:
            raise ConfigError(where, f"[{key}] needs {field.name}")
    return kind(**{name: _build(hints[name], item, where, _join(key, name)) for name, item in value.items()})


def _kind(value: Any) -> str:
    return f"{value!r}"[:60]


def _join(table: str, name: str) -> str:
    return f"{table}.{name}" if table else name

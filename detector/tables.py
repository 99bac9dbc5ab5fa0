"""Files read within bounds, and TOML tables -> frozen dataclasses: every key is a field, an unknown or impossible one is an error
that names it."""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import stat
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from detector.errors import ConfigError

T = TypeVar("T")

MOST_TEXT_BYTES = 1 << 16
"""Of settings, a recipe or a cfg: forty times the longest of ours."""
MOST_DOTS = 200
"""In a line of TOML: Python's reader of it takes memory by the square of a key's dots, 21 GB for a file of 260 kB."""
MOST_BITS = 4096
"""Of a whole number: Python refuses to print far longer ones, which hexadecimal digits make, and an error has to."""

_READABLE = "is the name right, and may this user read it?"
_NAMES = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}


def read_file(path: Path, most_bytes: int = MOST_TEXT_BYTES, kind: type[ConfigError] = ConfigError, fix: str = "") -> bytes:
    """What a file holds. Raises an error of this kind for one that cannot be read or is larger than any of its sort may be."""
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= most_bytes:
            with path.open("rb") as file:
                content = file.read(most_bytes + 1)  # it may have grown
            if len(content) <= most_bytes:
                return content
    except OSError as error:
        raise kind(str(path), f"cannot be read ({error.strerror})", fix) from error
    except ValueError as error:  # a name with a zero byte in it
        raise kind(str(path), f"cannot be read ({error})", fix) from error
    if not stat.S_ISREG(found.st_mode):  # a pipe may never end, nor even begin
        raise kind(str(path), "cannot be read (it is a folder, a pipe or a device)", fix)
    raise kind(str(path), f"cannot be read (it is larger than {most_bytes:,} bytes)", fix)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError naming the file."""
    content = read_file(path, fix=_READABLE)
    for number, line in enumerate(content.splitlines(), 1):
        if line.count(b".") > MOST_DOTS:
            raise ConfigError(f"{path}:{number}", f"has more than {MOST_DOTS} dots in a line")
    try:
        tables = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        at = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{at}", "is not TOML (it holds what is no UTF-8)", "save it as UTF-8") from error
    except ValueError as error:
        raise ConfigError(str(path), f"is not TOML ({error!s:.160})") from error
    except RecursionError:
        raise ConfigError(str(path), "is nested too deeply") from None
    todo: list[Any] = [tables]
    while todo:
        value = todo.pop()
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise ConfigError(str(path), "holds a whole number of thousands of digits")
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return tables


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
            raise ConfigError(where, f"{key} must be a list of {names}, not {_shown(value)}", f"write [[{key}]]" if tables else "")
        return tuple(_build(inner[0], item, where, key) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(where, f"{key} must be a table, not {_shown(value)}", f"write [{key}.NAME]")
        return types.MappingProxyType({name: _build(inner[1], item, where, _join(key, name)) for name, item in value.items()})
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 64 else float("inf")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(where, f"{key} has a zero character in it")
    if type(value) is not kind or value in (float("inf"), float("-inf")) or value != value:
        raise ConfigError(where, f"{key} must be {_NAMES[kind]}, not {_shown(value)}")
    return value


def _table(kind: Any, value: Any, where: str, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(where, f"{key} must be a table, not {_shown(value)}", f"write [{key}]")
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            fix = closest(name, hints)
            raise ConfigError(where, f"unknown key {_join(key, name):.100}", fix.replace("mean ", f"mean {key}.") if key else fix)
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in value:
            raise ConfigError(where, f"[{key}] needs {field.name}")
    return kind(**{name: _build(hints[name], item, where, _join(key, name)) for name, item in value.items()})


def _shown(value: Any) -> str:
    """A value as TOML has it; of what holds others only what it is."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, bool):
        return f"{value}".lower()
    return reprlib.repr(value) if isinstance(value, (str, int, float)) else f"{value}"


def _join(table: str, name: str) -> str:
    return f"{table}.{name}" if table else name

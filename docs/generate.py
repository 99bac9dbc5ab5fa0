"""Writes TOPICS.md, SETTINGS.md and COMMANDS.md beside it: `python docs/generate.py`, in an environment with urbandetect.

Nothing in them is told twice: topics and payloads are detector/schemas, settings the comments of detector.toml with the types and
defaults of detector/config.py, commands what `--help` says.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from detector.cli import cli
from detector.config import Settings, ThresholdSettings

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "detector/schemas").glob("*.json"))}
FIRST = ("event", "level", "health", "status", "source-status", "label-state")
"""The topics that most people want; others follow by name."""
WORDS = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "object", "array": "list"}
TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
EXAMPLES = ("thresholds.*", "profile", "profile.thresholds.*")
"""Tables in which detector.toml shows examples; elsewhere it shows the defaults."""

TOPICS = """\
# Topics and payloads

Every topic begins with `mqtt.root`, which is `urbandetect` unless set, and with `/`; `<node>`, `<source>` and `<label>` are
names. Each payload has a JSON Schema (draft 2020-12), linked below it, which is installed with urbandetect as well; tests hold
the messages of a running daemon to them. A program should pass over keys that it does not know: a later version may have more.

```
mosquitto_sub -h broker -t 'urbandetect/#' -v
python -c 'from detector import schemas; print(*schemas.__path__)'     # where the schemas are
```

What is retained is there for who subscribes later. Events are not: they are queued until the broker has them, in order, and
each reaches it at least once ([RELIABILITY.md](RELIABILITY.md#an-events-way-out)). A `start` whose program is killed has no
`end`: it is over when the label's `state` says `OFF`, as it does when the program starts again. What Home Assistant is told
besides, on its own discovery topics, is in [HOME-ASSISTANT.md](HOME-ASSISTANT.md).
"""

SETTINGS = """\
# Settings

The file is [detector.toml](../detector.toml): `./detector.toml`, else `/etc/urbandetect/detector.toml`, or the one that
`--config` names. Every key is optional unless it says otherwise; an unknown key, a wrong type or a value out of its range ends
the program with exit code 78 and one line that names file and key. Options of the command line win.

`systemctl reload urbandetect` (SIGHUP) takes `[thresholds]`, `[[profile]]`, `log_level` and `[mqtt]` without `root`, and says
what needs a restart. A file with an error changes nothing.
"""

COMMANDS = """\
# Commands

As `urbandetect COMMAND --help` says it. `--debug` before the command says more; exit codes are in
[ARCHITECTURE.md](ARCHITECTURE.md#exit-codes). Commands that train need `pip install -e '.[train]'`.
"""


def main() -> None:
    for name, text in pages().items():
        (ROOT / "docs" / name).write_text(text, encoding="utf-8")
        print(f"docs/{name}")


def pages() -> dict[str, str]:
    """Name -> text of every page that is made. Raises ValueError where a source does not tell all."""
    made = {"TOPICS.md": topics(), "SETTINGS.md": settings(), "COMMANDS.md": commands()}
    mark = "\n\n<!-- Made by docs/generate.py: do not edit. -->\n\n"
    return {name: text.replace("\n\n", mark, 1) for name, text in made.items()}


def topics() -> str:
    """Every schema that has an `mqtt`."""
    names = sorted((name for name in SCHEMAS if "mqtt" in SCHEMAS[name]), key=lambda name: (name not in FIRST, name))
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    index = [
        [f"`{s['mqtt']['topic']}`", _delivery(s), f"[{s['title']}](#{_anchor(s['title'])})"] for s in map(SCHEMAS.get, names) if s
    ]
    parts = [TOPICS, _table(["topic", "QoS", "what"], index)]
    for name in names:
        schema = SCHEMAS[name]
        about = f"`{schema['mqtt']['topic']}`, QoS {_delivery(schema)}. {schema['description']}"
        parts += [f"## {schema['title']}\n", about + "\n", _payload(name)]
    return "\n".join(parts)


def _delivery(schema: Mapping[str, Any]) -> str:
    return f"{schema['mqtt']['qos']}{', retained' if schema['mqtt']['retained'] else ''}"


def _payload(name: str) -> str:
    """What a schema says, as a table and an example."""
    schema = SCHEMAS[name]
    if values := schema.get("oneOf"):
        return _table(["payload", "means"], [[f"`{value['const']}`", value["description"]] for value in values])
    rows = [[f"`{key}`", _kind(value, schema), value["description"]] for key, value in _keys(schema, "")]
    example = "".join(f"```json\n{_example(value)}\n```\n" for value in schema.get("examples", []))
    at = f"Schema: [{name}.json](../detector/schemas/{name}.json).\n"
    return "\n".join(filter(None, [_table(["key", "type", "what"], rows) if rows else "", example, at]))


def _keys(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Dotted key -> schema of every value, in their order; `<name>` stands for any key, `[]` for every item."""
    if items := schema.get("items"):
        yield from _keys(items, f"{path}[]")
    for key, value in schema.get("properties", {}).items():
        at = f"{path}.{key}" if path else key
        yield at, value
        yield from _keys(value, at)
    if isinstance(each := schema.get("additionalProperties"), Mapping):
        yield from _keys(each, f"{path}.<name>")


def _kind(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    if "oneOf" in value:
        return " or ".join(_kind(choice, schema) for choice in value["oneOf"])
    if "$ref" in value:
        return str(value["$ref"].rsplit("/", 1)[1])
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    return " or ".join(WORDS.get(kind, kind) for kind in kinds)


def _example(value: object) -> str:
    """JSON with a key a line, what is inside them on one."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(inner)}" for key, inner in value.items()) + "\n}"


@dataclasses.dataclass(frozen=True)
class Told:
    """A key as detector.toml tells of it."""

    value: object
    comment: str


def settings() -> str:
    """Every field of Settings, with its comment."""
    intros, told = _told()
    parts, seen = [SETTINGS], set()
    for path, kind, many in _tables(Settings, "", False):
        name = path.replace("*", "LABEL")
        header = f"[[{name}]]" if many else f"[{name}]" if name else "At the top"
        parts.append(f"## {header}\n")
        if kind is ThresholdSettings and path != "thresholds.*":
            parts.append("The keys of [[thresholds.LABEL]](#thresholdslabel).\n")
            seen |= {key for key in told if key[0] == path}
            continue
        if path in intros:
            parts.append(_sentence(intros[path]) + "\n")
        rows = {}
        for field, hint in _scalars(kind):
            key = (path, field.name)
            if key not in told or not told[key].comment:
                raise ValueError(f"detector.toml: {header} needs a line `# {field.name} = ...  # what it means`")
            _check_default(path, field, told[key].value)
            default = "the model's" if kind is ThresholdSettings else _default(field)
            rows[key] = [f"`{field.name}`", _typed(hint), default, _linked(told[key].comment)]
        seen |= rows.keys()
        parts.append(_table(["key", "type", "default", "what"], [rows[key] for key in told if key in rows]))
    if extra := told.keys() - seen:
        raise ValueError(f"detector.toml: no setting is named {', '.join(sorted('.'.join(filter(None, key)) for key in extra))}")
    return "\n".join(parts)


def _told() -> tuple[dict[str, str], dict[tuple[str, str], Told]]:
    """What detector.toml says: of each table, and of each key in it; `*` stands for a label."""
    intros: dict[str, str] = {}
    told: dict[tuple[str, str], Told] = {}
    table, waiting = "", []
    for line in (ROOT / "detector.toml").read_text(encoding="utf-8").splitlines():
        if header := re.fullmatch(r"(?:# )?\[{1,2}([\w.]+)\]{1,2}(?: *# (.*))?", line):
            table = re.sub(r"(?<=thresholds\.)\w+$", "*", header[1])
            if intro := header[2] or " ".join(waiting):
                intros[table] = intro
            waiting = []
        elif key := re.fullmatch(r"(?:# )?(\w+ = (?:\"[^\"]*\"|[^#\"])*?)(?: *# (.*))?", line):
            [(name, value)] = tomllib.loads(key[1]).items()
            told[table, name] = Told(value, key[2] or "")
        else:
            waiting = [*waiting, line.removeprefix("# ")] if line else []
    return intros, told


def _tables(kind: type, path: str, many: bool) -> Iterator[tuple[str, type, bool]]:
    """Dotted path, dataclass, and whether there may be several, of every table, outer ones first."""
    yield path, kind, many
    for name, hint in typing.get_type_hints(kind).items():
        inner, at = typing.get_args(hint), f"{path}.{name}" if path else name
        if dataclasses.is_dataclass(hint):
            yield from _tables(typing.cast(type, hint), at, False)
        elif inner and dataclasses.is_dataclass(inner[0]):
            yield from _tables(inner[0], at, True)
        elif typing.get_origin(hint) is not None and len(inner) == 2 and dataclasses.is_dataclass(inner[1]):
            yield from _tables(inner[1], f"{at}.*", False)


def _scalars(kind: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields that are keys, with their types."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not any(dataclasses.is_dataclass(inner) for inner in (hints[field.name], *typing.get_args(hints[field.name]))):
            yield field, hints[field.name]


def _typed(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        return f"list of {TYPES[typing.get_args(hint)[0]]}"
    return TYPES[typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint]


def _default(field: dataclasses.Field[Any]) -> str:
    default = field.default
    if default is dataclasses.MISSING:
        return "needed"
    if default is None:
        return "none"
    return "empty" if default == "" else f"`{json.dumps(default)}`"


def _check_default(path: str, field: dataclasses.Field[Any], shown: object) -> None:
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    if path not in EXAMPLES and default not in ("", None) and shown != default:
        raise ValueError(f"detector.toml shows {path}.{field.name} = {shown!r}, the default is {default!r}")


def commands() -> str:
    """Every command and its options, and what a program reads from it."""
    found = list(_commands(cli, click.Context(cli, info_name="urbandetect")))
    index = [[f"[`{c.command_path}`](#{_anchor(c.command_path)})", _help(c).split("\n")[0]] for c in found]
    parts = [COMMANDS, _table(["command", "what"], index)]
    for context in found:
        usage = " ".join([context.command_path, *context.command.collect_usage_pieces(context)])
        parts += [f"## {context.command_path}\n", _help(context) + "\n", f"```\n{usage}\n```\n"]
        records = [param.get_help_record(context) for param in context.command.params]
        if rows := [[f"`{names}`", text] for names, text in filter(None, records) if names.startswith("-")]:
            parts.append(_table(["option", "what"], rows))
        for name, schema in SCHEMAS.items():
            if (called := schema.get("command", "")) and f"urbandetect {called.split(' --')[0]}" == context.command_path:
                parts += [f"`urbandetect {called}`: {schema['description']}\n", _payload(name)]
    return "\n".join(parts)


def _commands(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    if not isinstance(command, click.Group):
        yield context
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        if inner and not inner.hidden:
            yield from _commands(inner, click.Context(inner, info_name=name, parent=context))


def _help(context: click.Context) -> str:
    """A command's own words, a line a paragraph."""
    text = (context.command.help or "").split("\f")[0].replace("\b", "")
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """On one line. What would be HTML outside of `code` is not; a bar in it is written so that GitHub and MkDocs read it alike."""
    parts = " ".join(text.split()).split("`")
    for i, part in enumerate(parts):
        safe = part.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
        parts[i] = safe if i % 2 == 0 else f"<code>{safe}</code>" if "|" in part else f"`{part}`"
    return "".join(parts)


def _linked(text: str) -> str:
    """With pages of docs/ as links."""
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", text)


def _sentence(text: str) -> str:
    return _linked(text[0].upper() + text[1:].rstrip(":.") + ".")


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    main()

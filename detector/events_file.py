"""Events of recordings as lines and files: JSON lines, CSV, Audacity's labels, Parquet. A file appears whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, astuple
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from detector.errors import ConfigError, InputError, install
from detector.ledger import Ledger
from detector.scan import Found
from trainer.files import write_whole

HEADERS = {"csv": "file,label,onset_s,offset_s,score\n"}
ROWS = 100_000
"""Of a Parquet row group: what is in memory at once."""


def line(found: Found, format_: str) -> str:
    """One event as a line, without its end; Parquet has none."""
    if format_ == "audacity":
        return f"{found.onset_s:.6f}\t{found.offset_s:.6f}\t{found.label} {found.score:.2f}"
    facts: dict[str, Any] = {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(found).items()}
    if format_ == "jsonl":
        return json.dumps(facts, ensure_ascii=False)
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(facts.values())
    return out.getvalue()


def format_of(out: Path) -> str:
    """What a name's end asks for. Raises InputError."""
    format_ = out.suffix.removeprefix(".").lower()
    if format_ not in ("jsonl", "csv", "parquet"):
        raise InputError(str(out), "does not say in which format", "end it in .jsonl, .csv or .parquet, or give --format")
    return format_


def need(format_: str) -> None:
    """Raise ConfigError before the work when a package for this format is missing."""
    if format_ == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ConfigError("parquet", "needs pyarrow", install("archive")) from error


def write(out: Path, format_: str, names: list[str], ledger: Ledger) -> None:
    """All events of these recordings, in their order, as `out`; as Audacity's labels one file a recording in the folder `out`, by
    the recording's full path, and none for what else the ledger has. Raises InputError."""
    if format_ == "audacity":
        for name in set(ledger.names()).difference(names):
            with suppress(OSError):  # a name too long has none
                labels_of(out, name).unlink()
        for name in names:
            text = "".join(f"{line(found, format_)}\n" for found in ledger.events(name))
            write_whole(labels_of(out, name), partial(Path.write_text, data=text, encoding="utf-8"))
        return
    everything = chain.from_iterable(map(ledger.events, names))
    write_whole(out, lambda file: _parquet(file, everything) if format_ == "parquet" else _lines(file, everything, format_))


def labels_of(out: Path, name: str) -> Path:
    """Where in the folder `out` the labels of a recording are: below it, whatever the recording is called."""
    path = name.replace("://", "/") if "://" in name else os.path.realpath(name)
    parts = [part.replace(".", "%2E") if part in (".", "..") else part for part in path.split("/")]
    return out / f"{'/'.join(parts).lstrip('/')}.txt"


def _lines(path: Path, events: Iterator[Found], format_: str) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(HEADERS.get(format_, ""))
        file.writelines(f"{line(found, format_)}\n" for found in events)


def _parquet(path: Path, events: Iterator[Found]) -> None:
    import pyarrow
    import pyarrow.parquet

    kinds = {"file": pyarrow.string(), "label": pyarrow.string()} | dict.fromkeys(
        ("onset_s", "offset_s", "score"), pyarrow.float64()
    )
    schema = pyarrow.schema(list(kinds.items()))
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while rows := [astuple(found) for found in islice(events, ROWS)]:
            file, *others = zip(*rows, strict=True)
            columns = [[name.encode(errors="backslashreplace").decode() for name in file], *map(list, others)]
            writer.write_table(pyarrow.table(columns, schema=schema))

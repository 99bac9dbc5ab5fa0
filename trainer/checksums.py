"""MD5 of files, and the lists of them that come with an archive: a loader's index (JSON) or md5sum's output."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

MD5 = re.compile(r"[0-9a-fA-F]{32}")
LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](.+)")


def md5_of(path: Path) -> str:
    """The file's MD5 in lower-case hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def lists_in(root: Path) -> list[Path]:
    """The lists in a data set's folder or its metadata folder: *_index*.json, as mirdata and soundata publish it, and *.md5."""
    folders = (root, root / "metadata")
    return [path for folder in folders for pattern in ("*_index*.json", "*.md5") for path in sorted(folder.glob(pattern))]


def read_list(file: Path) -> tuple[list[tuple[str, str]], list[int]]:
    """The paths with their checksums, and the numbers of other lines. Raises OSError, and ValueError for no JSON or text."""
    if file.suffix == ".json":
        return list(_pairs_in(json.loads(file.read_text(encoding="utf-8")))), []
    lines = [(number, line) for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
    matches = [(number, LINE.fullmatch(line)) for number, line in lines]
    return [(match[2], match[1]) for _, match in matches if match], [number for number, match in matches if not match]


def _pairs_in(node: object) -> Iterator[tuple[str, str]]:
    """Every [path, md5] of an index: loaders differ in what they nest them in."""
    match node:
        case [str(path), str(md5)] if MD5.fullmatch(md5):
            yield path, md5
        case dict() | list():
            for inner in node.values() if isinstance(node, dict) else node:
                yield from _pairs_in(inner)

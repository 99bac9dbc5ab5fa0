"""The command that searches recordings: which, how many at once, where to, and how far it is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from detector.cli_settings import config_option, load_model, model_option, provider_option, settings_of
from detector.errors import InputError, TryAgainError

if TYPE_CHECKING:
    from detector.archive import Job, Outcome, Recording
    from detector.ledger import Ledger
    from detector.model import Model
    from detector.scan import Found

TERMINAL_S, PLAIN_S = 0.5, 30.0
"""How often progress is told: on a terminal, where it is one line that changes, and elsewhere."""


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonl", "csv", "audacity", "parquet"]),
    help="One line per event; parquet with --out alone.  [default: by the end of --out, else jsonl]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A file for all events, or a folder for audacity labels. The same command goes on where it was stopped.",
)
@click.option("--jobs", type=click.IntRange(1), help="So many recordings at once.  [default: the number of cores; 1 on a GPU]")
@click.option(
    "--ray", "address", metavar="ADDRESS", help="Share the work on this Ray cluster; `auto` finds the one that runs here."
)
@config_option
@model_option
@provider_option
def scan(
    paths: tuple[str, ...],
    format_: str | None,
    out: Path | None,
    jobs: int | None,
    address: str | None,
    config: Path | None,
    model_file: str | None,
    provider: str | None,
) -> None:
    """Find the events of recordings, as fast as it goes.

    PATHS are files, folders with recordings in them at any depth, or URLs (s3://bucket/folder). Events come in the order of PATHS,
    a folder's by name.
    """
    from dataclasses import asdict

    from detector.archive import Job, recordings
    from detector.config import thresholds
    from detector.events_file import format_of, need, write
    from detector.ledger import Ledger
    from detector.model import shipped

    if out is None and format_ == "parquet":
        raise InputError("--format parquet", "is no format of lines", "name a file with --out")
    if out and out.name in ("", ".."):
        raise InputError(f"--out {out}", "is no name of its own", "name a file, or for audacity a folder to be made")
    format_ = format_ or (format_of(out) if out else "jsonl")
    need(format_)
    settings, where = settings_of(config, None, None, None, model_file, provider)
    model = load_model(settings, where, model_file)
    d = model.description
    levels = thresholds(settings, d.thresholds, where)
    found, others = recordings(paths)
    path = Path(settings.model.path) if settings.model.path else shipped("urban.onnx")
    job = Job(path.absolute(), d.sha256, settings.model.provider, levels)
    jobs = jobs or (
        1 if model.provider == "cuda" else len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    )
    jobs = min(jobs, len(found))
    progress = Progress(found)
    here = any(each.size >= 0 or "://" in each.name for each in found)
    outcomes = partial(_outcomes, model=model, job=job, jobs=jobs, address=address if here else None, progress=progress)
    if out is None or not here:  # without a recording nothing is written, and an older output stays
        _to_stdout(found, format_ if here else "jsonl", outcomes, progress)
        return
    made_with = {"another model": d.sha256, "other thresholds": {label: asdict(levels[label]) for label in d.labels}}
    ledger = Ledger(out.with_name(f"{out.name}.ledger"), made_with)
    failed = _into(ledger, found, outcomes, progress)
    progress.say("writing the events")
    write(out, format_, [each.name for each in found if each.name not in failed or failed[each.name].found], ledger)
    ledger.close()
    progress.end(f", {others:,} other files not looked at" if others else "")
    _complain(failed, len(found))


def _into(
    ledger: Ledger, found: Sequence[Recording], outcomes: Callable[[Sequence[str]], Iterator[Outcome]], progress: Progress
) -> dict[str, Outcome]:
    """Have every recording in the ledger; the outcomes of those that could not be read. One to be tried again is there with what it
    gave, as a recording that has changed since."""
    by_name = {each.name: each for each in found}
    failed: dict[str, Outcome] = {}
    todo: list[str] = []
    for each in found:
        before = ledger.done(each)
        if before is None:
            todo.append(each.name)
        else:
            progress.skip(each)
            if before.error:
                failed[each.name] = before
                if len(found) > 1:
                    progress.error(before.error)
    for outcome in outcomes(todo):
        each = by_name[outcome.name]
        if each.size >= 0 and outcome.error and "://" not in each.name and not os.path.exists(each.name):  # noqa: PTH110 - as is_dir
            outcome = replace(outcome, again=True)  # it was there: perhaps its disk was taken out
        if not outcome.again or outcome.found:
            ledger.record(replace(each, changed="again") if outcome.again else each, outcome)
        if outcome.error:
            failed[outcome.name] = outcome
            if len(found) > 1:
                progress.error(outcome.error)
    return failed


def _to_stdout(
    found: Sequence[Recording],
    format_: str,
    outcomes: Callable[..., Iterator[Outcome]],
    progress: Progress,
) -> None:
    """Lines in the order of `found`: event by event when they are heard here, else recording by recording."""
    from detector.events_file import HEADERS, line

    names = [each.name for each in found]
    failed: dict[str, Outcome] = {}
    click.echo(HEADERS.get(format_, ""), nl=False)

    def tell(event: Found) -> None:
        progress.clear()
        click.echo(line(event, format_))

    def show(outcome: Outcome) -> None:
        for event in outcome.found:
            tell(event)
        if outcome.error:
            failed[outcome.name] = outcome
            if len(found) > 1:
                progress.error(outcome.error)

    waiting: dict[str, Outcome] = {}
    rest = iter(names)
    next_ = next(rest, None)
    for outcome in outcomes(names, tell=tell):
        waiting[outcome.name] = outcome
        while next_ in waiting:
            show(waiting.pop(next_))
            next_ = next(rest, None)
    progress.clear()
    _complain(failed, len(found))


def _outcomes(
    names: Sequence[str],
    *,
    model: Model,
    job: Job,
    jobs: int,
    address: str | None,
    progress: Progress,
    tell: Callable[[Found], None] | None = None,
) -> Iterator[Outcome]:
    """As they are ready: here (and tell, as for `examine`), by processes, or by a cluster."""
    from detector.archive import by_processes, examine

    if not names:
        return
    if address:
        from detector.cluster import by_ray

        each = by_ray(names, job, address)
    elif jobs == 1:
        each = (examine(name, model, job.thresholds, partial(progress.heard, name), tell) for name in names)
    else:
        each = by_processes(names, job, jobs, progress.heard)
    for outcome in each:
        progress.heard(outcome.name, outcome.seconds)
        progress.done(outcome.name)
        yield outcome


def _complain(failed: Mapping[str, Outcome], among: int) -> None:
    """Raise what makes the exit code."""
    again = sum(outcome.again for outcome in failed.values())
    if failed and among == 1:
        where, _, what = next(iter(failed.values())).error.partition(": ")
        raise (TryAgainError if again else InputError)(where, what)
    if again:
        raise TryAgainError("scan", f"{again} of {among} files could not be had", "the same command again tries them")
    if failed:
        raise InputError("scan", f"{len(failed)} of {among} files could not be read", "the lines above say why")


class Progress:
    """How far it is, on standard error: hours of sound heard, how many times real time, and the time left by the bytes to do."""

    def __init__(self, found: Sequence[Recording]) -> None:
        self._bytes = {each.name: max(0, each.size) for each in found}
        self._left = sum(self._bytes.values())
        self._todo, self._skipped, self._ready, self._heard_s, self._ready_bytes = len(found), 0, 0, 0.0, 0
        self._under_way: dict[str, float] = {}
        self._terminal = sys.stderr.isatty()
        self._began_s = self._told_s = time.monotonic()

    def skip(self, each: Recording) -> None:
        """It is done since an earlier run."""
        self._left -= self._bytes[each.name]
        self._todo -= 1
        self._skipped += 1

    def heard(self, name: str, seconds: float) -> None:
        """So much of it is heard."""
        self._under_way[name] = seconds
        self._tell()

    def done(self, name: str) -> None:
        """It is done."""
        self._heard_s += self._under_way.pop(name, 0.0)
        self._ready += 1
        self._ready_bytes += self._bytes[name]
        self._left -= self._bytes[name]
        self._tell()

    def error(self, line: str) -> None:
        """One line that stays."""
        self.clear()
        click.echo(f"urbandetect: {line}", err=True)

    def say(self, what: str) -> None:
        """What is done now, on a terminal."""
        if self._terminal:
            self.clear()
            click.echo(what, nl=False, err=True)

    def end(self, more: str) -> None:
        """The sum of it, where the events went to a file; `more` follows it."""
        self.clear()
        before = f", {self._skipped:,} done before" if self._skipped else ""
        click.echo((self._text() if self._todo else "nothing new to hear") + before + more, err=True)

    def _text(self) -> str:
        took_s = time.monotonic() - self._began_s
        heard_s = self._heard_s + sum(self._under_way.values())
        text = f"{self._ready:,} of {self._todo:,} recordings, {heard_s / 3600:.2f} h of sound, {heard_s / took_s:.0f} x real time"
        if self._left > 0 and self._ready_bytes:
            left_s = self._left * took_s / self._ready_bytes
            text += f", {left_s / 3600:.1f} h left" if left_s > 5400 else f", {left_s / 60:.0f} min left"
        return text

    def _tell(self) -> None:
        if time.monotonic() - self._told_s < (TERMINAL_S if self._terminal else PLAIN_S):
            return
        self._told_s = time.monotonic()
        self.clear()
        click.echo(self._text(), nl=not self._terminal, err=True)

    def clear(self) -> None:
        """Take the line away that changes."""
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)

"""The commands that look: at clips, at a data set, at an architecture. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from detector.errors import ConfigError, InputError, install
from trainer.cli import need_matplotlib, need_picture, need_torch


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model",
    "model_file",
    type=click.Path(path_type=Path),
    help="An .onnx or a model.pt; else the one that comes with urbandetect.",
)
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="So many labels a file.")
@click.option(
    "--plot",
    "plot_to",
    metavar="OUT.png",
    type=click.Path(path_type=Path),
    help="Draw the spectrogram and the scores (.png, .svg, .pdf); of several files: into this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs: one line of JSON a file.")
def classify(files: tuple[Path, ...], model_file: Path | None, top: int, plot_to: Path | None, as_json: bool) -> None:
    """The class of whole clips: one line a file, the best label first.

    A share is the softmax over the clip's pooled logits: it adds up to 1 over the labels and is no probability.
    """
    import json

    from detector.model import shipped

    path = model_file or shipped("urban.onnx")
    if path.suffix != ".onnx":
        need_torch()
    if plot_to:
        need_picture(plot_to) if len(files) == 1 else need_matplotlib(plot_to)
        if len(files) > 1 and (plot_to.suffix or len({file.stem for file in files}) < len(files)):
            raise InputError(f"--plot {plot_to}", "has one picture a file to hold", "give a folder, and files of different names")
    from trainer.classify import classify as classify_file
    from trainer.classify import load_classifier, picture

    classifier = load_classifier(path)
    width = max(len(str(file)) for file in files)
    failed = 0
    for file in files:
        try:
            answer = classify_file(classifier, file)
        except InputError as error:
            if len(files) == 1:
                raise
            click.echo(f"urbandetect: {error}", err=True)
            failed += 1
            continue
        best = list(answer.shares.items())[:top]
        if as_json:
            shares = {label: round(share, 4) for label, share in best}
            click.echo(json.dumps({"file": str(file), "label": answer.label, "share": shares[answer.label], "shares": shares}))
        else:
            click.echo(f"{file!s:<{width}}  " + "  ".join(f"{label} {share:.1%}" for label, share in best))
        if plot_to:
            from trainer.plots import save

            save(picture(classifier, answer, top), plot_to if len(files) == 1 else plot_to / f"{file.stem}.png")
    if failed:
        raise InputError("classify", f"{failed} of {len(files)} files could not be read", "the lines above say why")


@click.command()
@click.argument("file", metavar="CFG", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.svg", type=click.Path(path_type=Path))
def plot(file: Path, out: Path) -> None:
    """Draw the architecture of a .cfg or an .onnx as an SVG: layers, shapes, parameters, reach in time."""
    from trainer.architecture import draw
    from trainer.cfg import load_cfg, parse_cfg
    from trainer.files import write_whole

    if out.suffix.lower() != ".svg":
        raise InputError(str(out), "is not an .svg, the one kind of picture drawn here", "name it .svg; any browser shows it")
    if file.suffix == ".onnx":
        from detector.model import Model

        d = Model(file, "cpu").description
        svg = draw(parse_cfg(str(d.properties["cfg"]), str(file)), f"{d.name} {d.version}")
    else:
        svg = draw(load_cfg(file), file.stem)
    write_whole(out, lambda partial: partial.write_text(svg, encoding="utf-8"))


@click.command("augment-preview")
@click.argument("file", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.wav|OUT.png", type=click.Path(path_type=Path))
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="Whose [augment] to use; else urban.toml.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this augmentation, always on (crop, stretch, ...); repeatable.")
@click.option("--background", type=click.Path(path_type=Path), multiple=True, help="A folder of backgrounds to mix in; repeatable.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Another seed, another draw.")
def augment_preview(
    file: Path, out: Path, recipe_file: Path | None, only: tuple[str, ...], background: tuple[Path, ...], seed: int
) -> None:
    """Hear or see what training does to a clip.

    A .wav holds one draw, rebuilt from the magnitudes the network is given; a .png (.svg, .pdf) is a page: the clip, what each
    augmentation of the recipe does to it alone, and some draws of all of them.
    """
    need_torch()
    from detector.model import shipped
    from trainer.preview import page, sound
    from trainer.recipe import load_recipe

    path = recipe_file or shipped("urban.toml")
    augment = load_recipe(path).augment
    if out.suffix.lower() == ".wav":
        click.echo(sound(file, out, augment, only, background, seed))
        return
    need_picture(out, ".wav")
    from trainer.plots import save

    save(page(file, augment, only, background, seed), out)


@click.group()
def data() -> None:
    """Look at an UrbanSound8K folder before training on it; make soundscapes of it."""


_folder = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@data.command()
@_folder
@click.option("--complete", is_flag=True, help="Fewer than the official 8,732 clips are a fault too.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def verify(folder: Path, complete: bool, as_json: bool) -> None:
    """Check counts, labels, folds, audio and checksums, and name every file that is at fault. Exit code 0 or 64."""
    import json
    from dataclasses import asdict

    from trainer.verify import verify as verify_folder

    verdict = verify_folder(folder, complete, _progress)
    if as_json:
        click.echo(json.dumps({"sound": verdict.sound} | asdict(verdict)))
    else:
        for finding in (*verdict.notes, *verdict.findings):
            click.echo(f"note: {finding}" if finding.note else str(finding))
    if not verdict.sound:
        raise InputError(str(folder), f"{len(verdict.findings)} findings in {verdict.clips:,} clips", "each says what to do")
    if not as_json:
        click.echo(f"{folder}: {verdict.clips:,} clips, all sound")


@data.command()
@_folder
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("data-report.html"), show_default=True, help="The page to write."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def report(folder: Path, out: Path, as_json: bool) -> None:
    """What is in it: clips, recordings, durations, formats, loudness, a spectrogram of each class; as text and as one HTML page."""
    import json
    from dataclasses import asdict
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ConfigError("data report", "needs matplotlib", install("train"))
    from trainer.files import write_whole
    from trainer.page import html
    from trainer.report import facts, text

    found = facts(folder, progress=_progress)
    page = html(found)
    write_whole(out, lambda partial: partial.write_text(page, encoding="utf-8"))
    click.echo(json.dumps(asdict(found)) if as_json else text(found))
    click.echo(f"{out} has the pictures", err=True)


@data.command()
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--data", "folder", required=True, type=click.Path(path_type=Path), help="The UrbanSound8K folder.")
@click.option(
    "--fold", "folds", required=True, multiple=True, type=click.IntRange(1), help="Whose clips; repeatable: the folds take turns."
)
@click.option(
    "--background",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A folder of sounds that are none of the classes, to lie under the events; repeatable. Else noise and silence do.",
)
@click.option("--count", type=click.IntRange(1), default=60, show_default=True, help="So many files.")
@click.option("--length", "length_s", type=click.FloatRange(0.5, 3600), default=40.0, show_default=True, help="Seconds each.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Another seed, other soundscapes.")
def soundscapes(
    out: Path, folder: Path, folds: tuple[int, ...], background: tuple[Path, ...], count: int, length_s: float, seed: int
) -> None:
    """Mix clips over backgrounds, noise or silence into a street whose every event is known, to measure a model on.

    OUT gets SEED-0001.wav and so on, events.csv (file, class, onset_s, offset_s, fold, snr_db) and soundscapes.csv, which has every
    file, also those without an event (file, length_s, fold, events). A file has the clips of one fold, and backgrounds that are not
    trained with. The same data and seed give the same files.
    """
    from trainer.soundscape_files import write_soundscapes

    click.echo(write_soundscapes(out, folder, tuple(dict.fromkeys(folds)), background, count, length_s, seed, _progress))


def _progress(items: Iterable[Any], total: int) -> Iterator[Any]:
    """Say on a terminal how far it has come, elsewhere nothing."""
    import sys

    if not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, length=total, label="files", file=sys.stderr) as bar:
        yield from bar

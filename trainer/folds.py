"""Cross-validation: every fold tested by a network that never saw it, and the table of it, like the reference project's."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.cfg import Cfg
from trainer.data import DataSet, split
from trainer.devices import is_first_process
from trainer.files import write_whole
from trainer.plots import folds as picture
from trainer.plots import save
from trainer.recipe import Recipe
from trainer.run import clear, finished, run

COLUMNS = ("accuracy", "macro_precision", "macro_recall", "macro_f1", "average_precision", "ece")


def run_folds(
    cfg: Cfg,
    data: DataSet,
    recipe: Recipe,
    out: Path,
    *,
    protocol: str,
    fresh: bool,
    say: Callable[[str], None],
    ray: str = "",
    **how: Any,
) -> None:
    """Train once for every fold into `out`/foldK and write `out`/folds.md, folds.csv and folds.png, anew after every fold.

    A fold that is done is not trained again, one that was interrupted goes on. how: device, devices and skip_bad, as for `run`.
    ray: the address of a Ray cluster whose nodes train a fold each, as many at once as it has room for.
    """
    say = say if is_first_process() else lambda _: None
    if fresh:
        for fold in data.folds:
            clear(out / f"fold{fold}")
    figures: dict[int, dict[str, Any]] = {}

    def keep(fold: int, of_fold: dict[str, Any]) -> None:
        figures[fold] = of_fold
        if is_first_process():
            in_order = dict(sorted(figures.items()))
            _write(in_order, recipe.name or cfg.name, protocol, len(data.folds), out)

    todo: dict[int, tuple[Any, ...]] = {}
    for fold in data.folds:
        here, parts = out / f"fold{fold}", split(data, fold, protocol=protocol)
        done = finished(here, cfg, data, recipe, parts)
        if done:
            say(f"fold {fold} is done: test accuracy {done['metrics']['test']['accuracy']:.1%}")
            keep(fold, done)
        elif ray:
            todo[fold] = (cfg, data, recipe, parts, here)
        else:
            keep(fold, run(cfg, data, recipe, parts, here, say=say, **how))
    if todo:
        from trainer.cluster import train_on_ray

        for fold, of_fold in train_on_ray(todo, ray, say, how):
            keep(fold, of_fold)
    if is_first_process():
        say((out / "folds.md").read_text(encoding="utf-8"))


def table(figures: Mapping[int, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of text: a header, one row a fold, the mean, and the standard deviation over the folds (n - 1)."""
    rows = [["fold", "clips", "validation fold", "best epoch", *(name.replace("_", " ") for name in COLUMNS)]]
    for fold, each in figures.items():
        test, training = each["metrics"]["test"], each["training"]
        validation = ", ".join(map(str, training["folds"]["validation"]))
        rows.append([str(fold), str(test["clips"]), validation, str(each["metrics"]["best_epoch"]), *_shown(_values(each))])
    values = np.array([_values(each) for each in figures.values()])
    rows.append(["mean", str(sum(each["metrics"]["test"]["clips"] for each in figures.values())), "", "", *_shown(values.mean(0))])
    if len(values) > 1:
        rows.append(["deviation", "", "", "", *_shown(values.std(0, ddof=1))])
    return rows


def markdown(rows: list[list[str]], title: str) -> str:
    """The table for people."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join([title, "", *lines, ""])


def _values(figures: Mapping[str, Any]) -> list[float]:
    return [float(figures["metrics"]["test"][name]) for name in COLUMNS]


def _shown(values: Any) -> list[str]:
    return [f"{value:.3f}" if name == "ece" else f"{value:.1%}" for name, value in zip(COLUMNS, values, strict=True)]


def _write(figures: Mapping[int, Mapping[str, Any]], name: str, protocol: str, wanted: int, out: Path) -> None:
    rows = table(figures)
    chosen = "on another fold" if protocol == "honest" else "on the tested fold itself, the reference's protocol: no honest test"
    title = f"{name}: {len(figures)} of {wanted} folds, each tested by a network trained without it, its epoch chosen {chosen}"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(out / "folds.md", lambda partial: partial.write_text(markdown(rows, title), encoding="utf-8"))
    write_whole(out / "folds.csv", lambda partial: partial.write_text(text.getvalue(), encoding="utf-8"))
    accuracies = np.array([_values(each)[0] for each in figures.values()])
    deviation = float(accuracies.std(ddof=1)) if len(accuracies) > 1 else 0.0
    names = [str(fold) for fold in figures]
    short = f"{name}: accuracy of each fold, the epoch chosen {chosen}"
    save(picture(names, list(accuracies), float(accuracies.mean()), deviation, short), out / "folds.png")

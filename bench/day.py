"""A day of mixed street sound through a model, faster than real time: is it at the end what it was in the first hour?

    python bench/day.py [MODEL.onnx] [--sounds DIR ...] [--background DIR ...] [--hours 24]

Without --sounds the street is mixed from the demo recording. Exit code 1, and a line for each promise that is not kept: no quantile
of a state moves by more than a fifth of its first hour's span, no score of the demo recording by more than 0.02 from the first
hour's, no event is open after 5 s of digital silence, and none begins in the first second after a gap.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import numpy as np

from detector.model import Model, shipped
from trainer.data import read_audio
from trainer.day import DEMO, demo_bank, drift, failures, folder_bank, fresh, live


@click.command()
@click.argument("model_file", required=False, type=click.Path(path_type=Path))
@click.option("--sounds", type=click.Path(path_type=Path), multiple=True)
@click.option("--background", type=click.Path(path_type=Path), multiple=True)
@click.option("--hours", default=24, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(model_file: Path | None, sounds: tuple[Path, ...], background: tuple[Path, ...], hours: int, seed: int) -> None:
    began = time.monotonic()
    path = model_file or shipped("urban.onnx")
    model = Model(path, "cpu")
    rate = model.description.sample_rate
    bank = folder_bank(sounds, background, rate) if sounds else demo_bank(rate)
    probe = read_audio(DEMO / "street.ogg", rate)
    at_first = fresh(model, probe)
    print(f"{path}, sha256 {model.description.sha256[:12]}; quantiles are the 1, 50 and 99 % of a state, drift is against hour 1")
    heard = []
    for hour in live(model, bank, probe, hours, seed):
        heard.append(hour)
        moved = drift(hour, heard[0])
        state = "  ".join(
            f"{name} {' '.join(f'{q:+.3f}' for q in qs)} drift {moved[name]:.1%}" for name, qs in hour.quantiles.items()
        )
        fresh_by, first_by = (float(np.abs(hour.probe - other).max()) for other in (at_first, heard[0].probe))
        unclosed, false = (", ".join(labels) or "none" for labels in (hour.unclosed, hour.after_gaps))
        print(
            f"hour {len(heard):2d}  {state}  probe {first_by:.4f} from hour 1, {fresh_by:.4f} from fresh  {hour.events} events  "
            f"open in silence: {unclosed}  after {hour.gaps} gaps: {false}",
            flush=True,
        )
    print(f"largest drift      {max(max(drift(hour, heard[0]).values()) for hour in heard):.1%}")
    print(f"probe              {max(float(np.abs(hour.probe - heard[0].probe).max()) for hour in heard):.4f} from hour 1 at most")
    print(f"open in silence    {sum(len(hour.unclosed) for hour in heard)} in {len(heard)} minutes of it")
    print(f"false after a gap  {sum(len(hour.after_gaps) for hour in heard)} after {sum(hour.gaps for hour in heard)} gaps")
    print(f"time               {time.monotonic() - began:.0f} s for {len(heard)} h")
    for line in (broken := failures(heard)):
        print(line)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()

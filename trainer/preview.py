"""What training does to a clip, to be heard or seen: the same `draw` and `hear` as in training, for one clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio.functional import griffinlim

from detector import errors
from detector.errors import ConfigError, InputError
from detector.model import shipped
from detector.tables import closest
from trainer.augment import shape
from trainer.cfg import load_cfg
from trainer.crnn import CRNN
from trainer.data import Decoded, background_files, decode
from trainer.draw import Augmentation, Background, Draw
from trainer.files import write_whole
from trainer.hear import Batch, Sounds, hear, mix, prepare
from trainer.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS = 4
"""So many draws of all augmentations stand on a page."""

DOG_S = (6.25, 10.6)
"""Where a dog barks in the demo's recording: the second clip that `mixup` adds and whose style `style` takes."""

ROUNDS = 64
"""Of Griffin and Lim's algorithm: more are not heard."""


def sound(file: Path, out: Path, augment: Augmentation, only: Sequence[str], backgrounds: Sequence[Path], seed: int) -> str:
    """Write one draw as WAV and return what was drawn, in words.

    The network is given magnitudes: their phases are found by Griffin and Lim (1984), so that a stretch sounds a little rough.
    Styles and masks are not heard, they change mel bands. Raises InputError for a file that cannot be read or written, ConfigError
    for a name.
    """
    if "background" in only and not backgrounds:
        raise InputError("--only background", "has no background to mix in", "give a folder with --background")
    preview = _Preview(file, backgrounds)
    batch = preview.batch(_chosen(augment, only), seed)
    fe, drawn = preview.model.frontend, batch.drawn
    with torch.no_grad():
        mixed, *_ = mix(batch, fe.frontend)
        magnitude = shape(fe.magnitude(mixed), drawn, batch.frames, fe.frontend.sample_rate)[[preview.row(batch)]]
        n, hop = fe.frontend.n_fft, fe.frontend.hop_length
        torch.manual_seed(seed)
        wave = griffinlim(magnitude, fe.window, n, hop, n, 1.0, ROUNDS, 0.99, None, True)[0].clamp(-1, 1).numpy()
    write_whole(out, lambda partial: soundfile.write(partial, wave, fe.frontend.sample_rate, subtype="PCM_16", format="WAV"))
    return describe(batch.drawn, preview.row(batch))


def page(file: Path, augment: Augmentation, only: Sequence[str], backgrounds: Sequence[Path], seed: int) -> Figure:
    """Log-mel pictures: the clip, each augmentation alone and always on, and draws of all of them as often as the recipe says."""
    from trainer.plots import spectrograms

    preview = _Preview(file, backgrounds)
    active = [each.name for each in fields(augment) if getattr(augment, each.name).p > 0]
    active = [name for name in active if backgrounds or name != "background"]
    wanted = [("as it is", Augmentation())]
    wanted += [(name, _chosen(augment, (name,))) for name in only or active]
    wanted += [(f"all, draw {number}", augment) for number in range(1, 0 if only else DRAWS + 1)]
    images = [preview.features(how, seed + number) for number, (_, how) in enumerate(wanted)]
    titles = {"mixup": "mixup (with a dog)", "style": "style (of a dog)"}
    return spectrograms([image.numpy() for image in images], [titles.get(name, name) for name, _ in wanted])


def describe(d: Draw, row: int) -> str:
    """What a draw does to one example, in words and numbers."""
    said = [f"keeps {int(d.keep[row])} samples from {int(d.start[row])}"]
    parts: list[tuple[bool, str]] = [
        (bool(d.offset[row]), f"starts at {int(d.offset[row])}"),
        (
            bool(d.drr_db[row].isfinite()),
            f"room of {float(d.t60_s[row]):.2f} s, {float(d.drr_db[row]):.1f} dB below the direct sound",
        ),
        (bool(d.partner_gain[row]), f"a dog mixed in at {20 * float(d.partner_gain[row].clamp_min(1e-9).log10()):.1f} dB"),
        (bool(d.background_db[row].isfinite()), f"background {float(d.background_db[row]):.1f} dB below"),
        (bool(d.noise_db[row].isfinite()), f"noise {float(d.noise_db[row]):.1f} dB below"),
        (bool(d.noise_std[row]), f"noise of deviation {float(d.noise_std[row]):g}"),
        (bool(d.gain[row].abs() != 1), f"gain {20 * float(d.gain[row].abs().log10()):.1f} dB"),
        (bool(d.gain[row] < 0), "upside down"),
        (bool(d.rate[row] != 1), f"rate {float(d.rate[row]):.2f}"),
        (bool(d.ratio[row] != 1), f"pitch {12 * float(d.ratio[row].log2()):+.1f} semitones"),
        (bool(d.eq_db[row].any()), "response " + " ".join(f"{value:+.0f}" for value in d.eq_db[row].tolist()) + " dB"),
        (bool(d.high_hz[row].isfinite()), f"band {float(d.low_hz[row]):.0f} to {float(d.high_hz[row]):.0f} Hz"),
        (bool(d.lost[row]), f"loses {float(d.lost[row]):.0%} of its blocks"),
        (bool(d.style_own[row] < 1), f"{float(1 - d.style_own[row]):.0%} of a dog's style"),
        (bool(d.bands[row]), f"masks {int(d.bands[row])} bands"),
        (bool(d.frames[row]), f"masks {int(d.frames[row])} frames"),
    ]
    return ", ".join(said + [words for there, words in parts if there])


def _chosen(augment: Augmentation, only: Sequence[str]) -> Augmentation:
    """The augmentation, or of it only these, always on, as far as the recipe says or by default."""
    if not only:
        return augment
    known = [each.name for each in fields(augment)]
    for name in only:
        if name not in known:
            raise ConfigError(f"--only {name}", "is no augmentation", closest(name, known))
    changes: dict[str, Any] = {name: replace(getattr(augment, name), p=1.0) for name in only}
    return replace(Augmentation(), **changes)


class _Preview:
    """One clip, and a dog from the demo to mix it with, through the shipped network's front end."""

    def __init__(self, file: Path, backgrounds: Sequence[Path]) -> None:
        self.model = CRNN(load_cfg(shipped("urban.cfg"))).eval()
        rate = self.model.cfg.frontend.sample_rate
        clip = decode([file], rate)
        street = decode([Path(errors.__file__).parent / "demo" / "street.ogg"], rate)[0]
        dog = street[int(DOG_S[0] * rate) : int(DOG_S[1] * rate)]
        beds = decode(background_files(list(backgrounds)), rate) if backgrounds else None
        both = Decoded(np.concatenate([clip.samples, dog]), np.cumsum([0, len(clip.samples), len(dog)]))
        self.sounds = Sounds(both, torch.tensor([0, 1]), beds)
        self.canvas_s = len(clip.samples) / rate

    def batch(self, augment: Augmentation, seed: int) -> Batch:
        recipe = replace(Recipe(), augment=augment if self.sounds.beds else replace(augment, background=Background(0.0)))
        recipe = replace(recipe, stream=replace(recipe.stream, canvas_s=self.canvas_s))
        generator = torch.Generator().manual_seed(seed)
        batch = prepare(self.model.cfg, recipe, self.sounds, torch.tensor([0, 1]), 2, generator)
        return replace(batch, drawn=replace(batch.drawn, partner=torch.tensor([1, 0]), style_of=torch.tensor([1, 0])))

    def row(self, batch: Batch) -> int:
        """Where in the batch the clip itself stands."""
        return int((batch.target == 0).nonzero())

    def features(self, augment: Augmentation, seed: int) -> Tensor:
        with torch.no_grad():
            batch = self.batch(augment, seed)
            return hear(self.model.frontend, batch, self.model.cfg.outputs).features[self.row(batch)]

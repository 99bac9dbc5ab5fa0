"""Soundscapes: minutes of street made of clips over backgrounds, noise or silence, with the exact times of every event.

A soundscape depends on its sounds and its seed alone. Training hears them as endless streams, evaluation counts on their events.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from detector.errors import InputError
from trainer.data import FULL_SCALE, DataSet, Decoded, background_files, decode, load_dataset, must_have
from trainer.files import write_whole

Floats = NDArray[np.float32]

UNKNOWN = -1
"""The kind of a bed that nobody has named."""
EVENT_EVERY_S = 8.0
"""On average, where there are any."""
EMPTY = 0.3
"""The share of soundscapes without any event: most hours of a street have none."""
SNR_DB = (-5.0, 25.0)
"""Of an event to its bed, over the parts in which it sounds (the range of Salamon et al. 2017 for urban soundscapes, and below)."""
FAINT_DB = 3.0
"""What is less above its bed is heard or missed: training asks for neither. To ask for it would be to ask for false events."""
BED_DB = (-20.0, 3.0)
"""Of backgrounds, to the level they were recorded at. Quieter than the clips, they would teach that what is loud is an event."""
NOISE_DBFS = (-60.0, -15.0)
"""Of synthetic noise; events over digital silence are as loud as over noise."""
LASTS_S = 12.0
"""The mean time for which a sound goes on that is longer than its clip."""
BLOCK, SILENCE = 1024, 1e-3
"""A block of so many samples more than 30 dB below its event's loudest one is silence."""
PAUSE_S = 1.0
"""A longer silence ends the event: what follows is another one."""
FADE_S = 0.02
LOWEST_HZ = 20.0
"""Brown noise would have nearly all its power below what a microphone, a network or we can hear."""
SLICE_S, SLICE_HOP_S = 4.0, 2.0
"""UrbanSound8K cuts a longer sound into slices of 4 s, one every 2 s."""
LOUDEST = 0.9
"""An event's peak: one that would be louder is mixed in at a lower SNR."""
RATE = 22_050
"""Of soundscapes written to files, samples a second."""


@dataclass(frozen=True)
class Event:
    """label: column of the scores; snr_db: of the sound to the bed's level, as it was mixed in.

    onset, offset: in samples of the soundscape, where the first block that sounds begins and the last one ends, or the soundscape.
    """

    label: int
    onset: int
    offset: int
    snr_db: float


@dataclass(frozen=True)
class Soundscape:
    """audio: float32 [samples] in -1..1; events in order of onset, at least PAUSE_S between two of one label.

    active: [blocks, labels], whether a label sounds in the middle of a block of BLOCK: within events, not in their short pauses;
    faint: [blocks, labels], where what sounds is less than FAINT_DB above the bed: nobody could be sure;
    kind: [blocks], of the bank's kinds the one that the bed under it is of.
    """

    audio: Floats
    events: tuple[Event, ...]
    active: NDArray[np.bool_]
    faint: NDArray[np.bool_]
    kind: NDArray[np.int64]


@dataclass(frozen=True)
class Bank:
    """What soundscapes are made of.

    sources: per label, per recording, its clips; goes_on: the clip that carries a clip on, where it is here; beds may be empty;
    kinds: what each bed is of, UNKNOWN where nobody says.
    """

    clips: Decoded
    sources: tuple[tuple[tuple[int, ...], ...], ...]
    goes_on: dict[int, int]
    beds: Decoded | None
    rate: int
    kinds: Sequence[int] = ()


def bank(data: DataSet, chosen: Sequence[int], clips: Decoded, beds: Decoded | None, rate: int, kinds: Sequence[int] = ()) -> Bank:
    """Sort the chosen clips by label and recording. `FSID-CLASS-OCCURRENCE-SLICE.wav` says which clip goes on with which."""
    by_label: list[dict[str, list[int]]] = [defaultdict(list) for _ in data.labels]
    by_slice: dict[tuple[str, int], int] = {}
    for index in chosen:
        clip = data.clips[index]
        if not len(clips[index]):
            continue
        by_label[clip.target][clip.recording].append(index)
        if named := re.fullmatch(r"(.+)-(\d+)", clip.path.stem):
            by_slice[named[1], int(named[2])] = index
    goes_on = {index: by_slice[name, number + 1] for (name, number), index in by_slice.items() if (name, number + 1) in by_slice}
    sources = tuple(tuple(tuple(found) for found in recordings.values()) for recordings in by_label)
    return Bank(clips, sources, goes_on, beds, rate, kinds)


def soundscape(bank: Bank, samples: int, seed: Sequence[int]) -> Soundscape:
    """The soundscape of this seed, `samples` long: labels, then their recordings and clips are equally likely.

    A clip of full slice length goes on with the next slices of its recording, then from its beginning, for LASTS_S on average. A
    third of the events already sound when the soundscape begins or still do when it ends, as they do when one switches on.
    """
    draw = np.random.default_rng(seed)
    noise_level = 10 ** (draw.uniform(*NOISE_DBFS) / 20)
    audio, kind = _bed(bank, samples, noise_level, draw)
    level = float(np.sqrt(np.mean(np.square(audio)))) or noise_level
    active = np.zeros((-(-samples // BLOCK), len(bank.sources)), bool)
    faint = np.zeros_like(active)
    middles = np.arange(len(active)) * BLOCK + BLOCK // 2
    pause = int(PAUSE_S * bank.rate)
    here = [label for label, recordings in enumerate(bank.sources) if recordings]
    events: list[Event] = []
    count = 0 if draw.random() < EMPTY or not here else 1 + draw.poisson(samples / bank.rate / EVENT_EVERY_S)
    for _ in range(count):
        label = int(draw.choice(here))
        sound = _sound(bank, label, samples, draw)
        at = int(draw.integers(-len(sound) // 2, samples))
        snr_db = float(draw.uniform(*SNR_DB))
        square = np.add.reduceat(np.square(sound), np.arange(0, len(sound), BLOCK))
        audible = square > SILENCE * square.max()
        starts = at + BLOCK * np.flatnonzero(audible)
        runs = _runs(starts[(starts > -BLOCK) & (starts < samples)], pause)
        runs = [(max(0, first), min(samples, end)) for first, end in runs]
        runs = [(first, end) for first, end in runs if end - first >= BLOCK]
        if not runs or any(e.label == label and e.onset - pause < runs[-1][1] and runs[0][0] < e.offset + pause for e in events):
            continue
        loudness = float(np.sqrt(square[audible].sum() / (audible.sum() * BLOCK)))
        snr_db = min(snr_db, 20 * math.log10(LOUDEST / float(np.abs(sound).max()) * loudness / level))
        if snr_db < SNR_DB[0]:
            continue
        gain = level * 10 ** (snr_db / 20) / loudness
        first, end = max(0, at), min(samples, at + len(sound))
        audio[first:end] += sound[first - at : end - at] * np.float32(gain)
        for onset, offset in runs:
            inside = (middles >= onset) & (middles < offset)
            active[inside, label] = audible[(middles[inside] - at) // BLOCK]
            faint[inside, label] = snr_db < FAINT_DB
        events += [Event(label, onset, offset, snr_db) for onset, offset in runs]
    return Soundscape(np.clip(audio, -1, 1), tuple(sorted(events, key=lambda event: event.onset)), active, faint, kind)


def write_soundscapes(
    out: Path,
    data_folder: Path,
    folds: Sequence[int],
    backgrounds: Sequence[Path] = (),
    count: int = 60,
    length_s: float = 40.0,
    seed: int = 1,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> str:
    """Write `count` soundscapes as `out`/SEED-0001.wav ... with two tables, and say in a line what they hold.

    A soundscape is made of the clips of one fold; the folds take turns. Of the backgrounds it has those that only measure.
    events.csv has a row an event (file, class, onset_s, offset_s, fold, snr_db), soundscapes.csv a row a file, those without any
    event too (file, length_s, fold, events). Raises InputError where `out` holds something, and for what the data lacks.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(str(out), "is there already and not an empty folder", "give a new folder")
    data = load_dataset(data_folder)
    must_have(data, folds)
    data = replace(data, clips=tuple(clip for clip in data.clips if clip.fold in folds))
    clips = decode(data.paths, RATE)
    beds = decode(background_files(backgrounds, "test"), RATE) if backgrounds else None
    banks = [bank(data, data.of_folds([fold]), clips, beds, RATE) for fold in folds]
    events: list[dict[str, str | int]] = []
    files: list[dict[str, str | int]] = []
    for index in progress(range(count), count):
        made = soundscape(banks[index % len(folds)], int(length_s * RATE), [seed, index])
        name, fold = f"{seed}-{index + 1:04d}.wav", folds[index % len(folds)]

        def write(partial: Path, audio: Floats = made.audio) -> None:
            soundfile.write(partial, audio, RATE, "PCM_16", format="WAV")

        write_whole(out / name, write)
        files.append({"file": name, "length_s": f"{len(made.audio) / RATE:.5f}", "fold": fold, "events": len(made.events)})
        events += [
            {
                "file": name,
                "class": data.labels[event.label],
                "onset_s": f"{event.onset / RATE:.5f}",
                "offset_s": f"{event.offset / RATE:.5f}",
                "fold": fold,
                "snr_db": f"{event.snr_db:.1f}",
            }
            for event in made.events
        ]
    _table(out / "soundscapes.csv", ("file", "length_s", "fold", "events"), files)
    _table(out / "events.csv", ("file", "class", "onset_s", "offset_s", "fold", "snr_db"), events)
    empty = sum(not file["events"] for file in files)
    return f"{out}: {count} soundscapes, {count * length_s / 60:.1f} min, {len(events)} events, {empty} without any"


def _table(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str | int]]) -> None:
    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)

    write_whole(path, write)


def _sound(bank: Bank, label: int, longest: int, draw: np.random.Generator) -> Floats:
    """One event's sound: a clip, or where it was cut from a longer sound, that sound for a while."""
    recordings = bank.sources[label]
    clips = recordings[draw.integers(len(recordings))]
    clip = beginning = int(clips[draw.integers(len(clips))])
    fade = int(FADE_S * bank.rate)
    full, hop = int(SLICE_S * bank.rate), int(SLICE_HOP_S * bank.rate)
    wanted = min(longest, full + int(draw.exponential(LASTS_S - SLICE_S) * bank.rate))
    sound = _floats(bank.clips[clip])
    last = len(sound)
    up = np.linspace(0, 1, fade, dtype=np.float32)
    while last >= full - fade and len(sound) < wanted:
        following = bank.goes_on.get(clip)
        clip = beginning if following is None else following
        whole = _floats(bank.clips[clip])
        more = whole if following is None else whole[last - hop - fade :]
        last = len(whole)
        if len(more) <= fade:
            break
        sound = np.concatenate([sound[:-fade], sound[-fade:] * (1 - up) + more[:fade] * up, more[fade:]])
    sound = sound[:wanted].copy()
    edge = min(fade, len(sound) // 2)
    sound[:edge] *= np.linspace(0, 1, edge, dtype=np.float32)
    sound[len(sound) - edge :] *= np.linspace(1, 0, edge, dtype=np.float32)
    return sound


def _bed(bank: Bank, samples: int, level: float, draw: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
    """What lies under the events: digital silence, coloured noise with or without hum, or backgrounds in turn, each a little louder
    or quieter than it was; and of which kind it is, by block."""
    kind = np.full(-(-samples // BLOCK), UNKNOWN)
    chance = draw.random()
    if chance < 0.1:
        return np.zeros(samples, np.float32), kind
    if chance < 0.25 or not bank.beds:
        return _noise(samples, bank.rate, draw) * np.float32(level), kind
    fade, gain_db = int(FADE_S * bank.rate), draw.uniform(*BED_DB)
    bed = np.zeros(samples + fade, np.float32)
    at, up = 0, np.linspace(0, 1, fade, dtype=np.float32)
    while at < samples:
        which = int(draw.integers(len(bank.beds)))
        piece = _floats(bank.beds[which])
        piece = piece[int(draw.integers(max(1, len(piece) // 2))) :][: samples + fade - at]
        if len(piece) <= 2 * fade:
            piece = np.zeros(min(bank.rate, samples + fade - at), np.float32)
        piece = piece * np.float32(10 ** ((gain_db + draw.normal(0, 4)) / 20))
        if len(piece) > 2 * fade:
            piece[:fade] *= up
            piece[-fade:] *= up[::-1]
        bed[at : at + len(piece)] += piece
        kind[-(-at // BLOCK) :] = bank.kinds[which] if bank.kinds else UNKNOWN
        at += max(1, len(piece) - fade)
    return bed[:samples], kind


def _noise(samples: int, rate: int, draw: np.random.Generator) -> Floats:
    """Noise of RMS 1 from LOWEST_HZ whose power falls with f^0 (white) to f^2 (brown), in half of the draws with a mains hum."""
    slope = draw.uniform(0, 2)
    size = 1 << 16
    spectrum = np.fft.rfft(draw.standard_normal(size))
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-slope / 2)
    spectrum[: 1 + int(LOWEST_HZ * size / rate)] = 0
    noise = np.tile(np.fft.irfft(spectrum), -(-samples // size))[:samples]
    noise /= np.sqrt(np.mean(np.square(noise)))
    if draw.random() < 0.5:
        mains = draw.choice([50.0, 60.0]) * 2 * np.pi * np.arange(samples) / rate
        hum = sum(np.sin(number * mains + draw.uniform(0, 6)) / number for number in range(1, 6))
        noise = noise + hum * 10 ** (draw.uniform(-10, 20) / 20)
        noise /= np.sqrt(np.mean(np.square(noise)))
    return noise.astype(np.float32)


def _runs(starts: NDArray[np.intp], pause: int) -> list[tuple[int, int]]:
    """Stretches of sound in samples, none with a longer pause in it; starts: where its blocks begin."""
    if not len(starts):
        return []
    breaks = np.flatnonzero(np.diff(starts) > pause + BLOCK)
    firsts, lasts = starts[np.r_[0, breaks + 1]], starts[np.r_[breaks, len(starts) - 1]]
    return [(int(first), int(last) + BLOCK) for first, last in zip(firsts, lasts, strict=True)]


def _floats(samples: NDArray[np.int16]) -> Floats:
    mono = samples if samples.ndim == 1 else samples.mean(1)
    return np.asarray(mono, np.float32) / np.float32(FULL_SCALE)

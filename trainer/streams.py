"""Soundscapes: minutes of street made of clips over backgrounds, noise or silence, with the exact times of every event.

A soundscape depends on its sounds and its seed alone. Training hears them as endless streams, evaluation counts on their events.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data import FULL_SCALE, DataSet, Decoded

Floats = NDArray[np.float32]

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
BLOCK, SILENCE, CLEAR = 1024, 1e-3, 1e-2
"""A block of so many samples more than 30 dB below its sound's loudest one is silence: a bark is not the pause after it. One more
than 20 dB below it may be the bark's echo or the street it is heard in: it is not clear."""
PAUSE_S = 1.0
"""A longer silence ends the event: what follows is another one."""
FADE_S = 0.02
LOWEST_HZ = 20.0
"""Brown noise would have nearly all its power below what a microphone, a network or we can hear."""
SLICE_S, SLICE_HOP_S = 4.0, 2.0
"""UrbanSound8K cuts a longer sound into slices of 4 s, one every 2 s."""
OTHER_S, OTHERS_EVERY_S = 6.0, 8.0
"""Of what training must learn to be no event, in a street where it is to meet much of it: how long at most, how often."""
QUIETEST = 1e-6
LOUDEST = 0.9
"""An event's peak: one that would be louder is mixed in at a lower SNR."""


@dataclass(frozen=True)
class Event:
    """label: column of the scores; snr_db: of the sound to the bed's level, as it was mixed in, NaN where it was not.

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
    faint: [blocks, labels], where what sounds is less than FAINT_DB above the bed, or not clear: nobody could be sure.
    """

    audio: Floats
    events: tuple[Event, ...]
    active: NDArray[np.bool_]
    faint: NDArray[np.bool_]


@dataclass(frozen=True)
class Bank:
    """What soundscapes are made of.

    sources: per label, per recording, its clips; goes_on: the clip that carries a clip on, where it is here; beds may be empty.
    """

    clips: Decoded
    sources: tuple[tuple[tuple[int, ...], ...], ...]
    goes_on: dict[int, int]
    beds: Decoded | None
    rate: int


def bank(data: DataSet, chosen: Sequence[int], clips: Decoded, beds: Decoded | None, rate: int) -> Bank:
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
    return Bank(clips, sources, goes_on, beds, rate)


def soundscape(bank: Bank, samples: int, seed: Sequence[int], busy: bool = False) -> Soundscape:
    """The soundscape of this seed, `samples` long: labels, then their recordings and clips are equally likely.

    busy: as training hears it: no background lasts longer than OTHER_S, and every OTHERS_EVERY_S, on average, something of them
    stands out of the bed as events do, and is none.

    A clip of full slice length goes on with the next slices of its recording, then from its beginning, for LASTS_S on average. A
    third of the events already sound when the soundscape begins or still do when it ends, as they do when one switches on.
    """
    draw = np.random.default_rng(seed)
    noise_level = 10 ** (draw.uniform(*NOISE_DBFS) / 20)
    other_samples = int(OTHER_S * bank.rate)
    audio = _bed(bank, samples, other_samples if busy else samples, noise_level, draw)
    level = float(np.sqrt(np.mean(np.square(audio)))) or noise_level
    active = np.zeros((-(-samples // BLOCK), len(bank.sources)), bool)
    faint = np.zeros_like(active)
    middles = np.arange(len(active)) * BLOCK + BLOCK // 2
    pause = int(PAUSE_S * bank.rate)
    here = [label for label, recordings in enumerate(bank.sources) if recordings]
    if bank.beds and busy:
        for _ in range(draw.poisson(samples / bank.rate / OTHERS_EVERY_S)):
            other = faded(piece(bank.beds, other_samples, draw), bank.rate)
            at, snr_db = int(draw.integers(-len(other) // 2, samples)), float(draw.uniform(*SNR_DB))
            _add(audio, other, at, _loudness(other)[0], snr_db, level)
    events: list[Event] = []
    count = 0 if draw.random() < EMPTY or not here else 1 + draw.poisson(samples / bank.rate / EVENT_EVERY_S)
    for _ in range(count):
        label = int(draw.choice(here))
        sound = _sound(bank, label, samples, draw)
        at = int(draw.integers(-len(sound) // 2, samples))
        snr_db = float(draw.uniform(*SNR_DB))
        loudness, audible, soft = _loudness(sound)
        starts = at + BLOCK * np.flatnonzero(audible)
        runs = _runs(starts[(starts > -BLOCK) & (starts < samples)], pause)
        runs = [(max(0, first), min(samples, end)) for first, end in runs]
        runs = [(first, end) for first, end in runs if end - first >= BLOCK]
        if not runs or any(e.label == label and e.onset - pause < runs[-1][1] and runs[0][0] < e.offset + pause for e in events):
            continue
        mixed_db = _add(audio, sound, at, loudness, snr_db, level)
        if mixed_db is None:
            continue
        for onset, offset in runs:
            inside = (middles >= onset) & (middles < offset)
            active[inside, label] = audible[(middles[inside] - at) // BLOCK]
            faint[inside, label] = (mixed_db < FAINT_DB) | soft[(middles[inside] - at) // BLOCK]
        events += [Event(label, onset, offset, mixed_db) for onset, offset in runs]
    return Soundscape(np.clip(audio, -1, 1), tuple(sorted(events, key=lambda event: event.onset)), active, faint)


def _sound(bank: Bank, label: int, longest: int, draw: np.random.Generator) -> Floats:
    """One event's sound: a clip, or where it was cut from a longer sound, that sound for a while."""
    recordings = bank.sources[label]
    clips = recordings[draw.integers(len(recordings))]
    clip = beginning = int(clips[draw.integers(len(clips))])
    fade = int(FADE_S * bank.rate)
    full, hop = int(SLICE_S * bank.rate), int(SLICE_HOP_S * bank.rate)
    wanted = min(longest, full + int(draw.exponential(LASTS_S - SLICE_S) * bank.rate))
    sound = floats(bank.clips[clip])
    last = len(sound)
    up = np.linspace(0, 1, fade, dtype=np.float32)
    while last >= full - fade and len(sound) < wanted:
        following = bank.goes_on.get(clip)
        clip = beginning if following is None else following
        whole = floats(bank.clips[clip])
        more = whole if following is None else whole[last - hop - fade :]
        last = len(whole)
        if len(more) <= fade:
            break
        sound = np.concatenate([sound[:-fade], sound[-fade:] * (1 - up) + more[:fade] * up, more[fade:]])
    return faded(sound[:wanted], bank.rate)


def faded(sound: Floats, rate: int) -> Floats:
    """A copy that comes and goes within FADE_S, or half of it if it is shorter: [samples] -> [samples]."""
    sound, edge = sound.copy(), min(int(FADE_S * rate), len(sound) // 2)
    sound[:edge] *= np.linspace(0, 1, edge, dtype=np.float32)
    sound[len(sound) - edge :] *= np.linspace(1, 0, edge, dtype=np.float32)
    return sound


def _loudness(sound: Floats) -> tuple[float, NDArray[np.bool_], NDArray[np.bool_]]:
    """A sound's RMS over its audible blocks, above 0; which of its blocks are audible; and which are so without being clear."""
    square = np.add.reduceat(np.square(sound), np.arange(0, len(sound), BLOCK))
    audible = square > SILENCE * square.max()
    soft = audible & (square <= CLEAR * square.max())
    return math.sqrt(float(square[audible].sum()) / max(1, int(audible.sum())) / BLOCK) or QUIETEST, audible, soft


def _add(audio: Floats, sound: Floats, at: int, loudness: float, snr_db: float, level: float) -> float | None:
    """Mix a sound in from sample `at` on, so far above the bed's level or as its peak allows; how far, None if too little."""
    peak = float(np.abs(sound).max()) or QUIETEST
    snr_db = min(snr_db, 20 * math.log10(LOUDEST / peak * loudness / level))
    if snr_db < SNR_DB[0]:
        return None
    first, end = max(0, at), min(len(audio), at + len(sound))
    audio[first:end] += sound[first - at : end - at] * np.float32(level * 10 ** (snr_db / 20) / loudness)
    return snr_db


def piece(beds: Decoded, longest: int, draw: np.random.Generator) -> Floats:
    """No more than so many samples of a background, from a random place in its first half on."""
    whole = beds[int(draw.integers(len(beds)))]
    return floats(whole[int(draw.integers(max(1, len(whole) // 2))) :][:longest])


def _bed(bank: Bank, samples: int, longest: int, level: float, draw: np.random.Generator) -> Floats:
    """What lies under the events: digital silence, coloured noise with or without hum, or backgrounds in turn, each of no more than
    `longest` samples and a little louder or quieter than it was."""
    chance = draw.random()
    if chance < 0.1:
        return np.zeros(samples, np.float32)
    if chance < 0.25 or not bank.beds:
        return _noise(samples, bank.rate, draw) * np.float32(level)
    fade, gain_db = int(FADE_S * bank.rate), draw.uniform(*BED_DB)
    bed = np.zeros(samples + fade, np.float32)
    at, up = 0, np.linspace(0, 1, fade, dtype=np.float32)
    while at < samples:
        part = piece(bank.beds, min(longest, samples - at) + fade, draw)
        if len(part) <= 2 * fade:
            part = np.zeros(min(bank.rate, samples + fade - at), np.float32)
        part = part * np.float32(10 ** ((gain_db + draw.normal(0, 4)) / 20))
        if len(part) > 2 * fade:
            part[:fade] *= up
            part[-fade:] *= up[::-1]
        bed[at : at + len(part)] += part
        at += max(1, len(part) - fade)
    return bed[:samples]


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


def floats(samples: NDArray[np.int16]) -> Floats:
    """Decoded audio, mono in -1..1: [samples] or [samples, channels] -> [samples]."""
    mono = samples if samples.ndim == 1 else samples.mean(1)
    return np.asarray(mono, np.float32) / np.float32(FULL_SCALE)

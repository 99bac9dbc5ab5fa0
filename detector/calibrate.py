"""A calibrator's tone -> the sound pressure level of a full-scale sine, or why this tone is not good for it."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import numpy as np

from detector.audio.level import dbfs
from detector.audio.microphone import Microphone
from detector.audio.source import Floats, SourceLost
from detector.audio.weighting import a_weighting
from detector.errors import InputError, TryAgainError

log = logging.getLogger(__name__)

TONE_HZ = (950.0, 1050.0)
"""Acoustic calibrators give 1 kHz, where weighting A is 0 dB; IEC 60942 lets class 2 be 2 % off. The 250 Hz of a pistonphone are
not for dB(A)."""
PIECE_S = 0.5
"""The tone is looked at in pieces of this length: 2 Hz apart in frequency, slow enough for the tone of a cheap calibrator."""
SPREAD_DB = 0.5
"""Between the loudest and the softest piece: class 2 of IEC 60942 lets a calibrator's level waver by 0.2 dB to either side."""
FAINTEST_DBFS = -60.0
"""Below this 94 dB would be close to the noise of 16 bit: the gain is down, or it is not the tone that is heard."""
CLIPPED = 0.98
"""Of full scale: a sound card's converter flattens before its end."""
REST_DB = -20.0
"""Whatever else is heard, A-weighted, against the tone: at this it would add 0.04 dB."""
SETTLE_S = 1.0
"""What a sound card gives first is not listened to: it may click, and its offset settles."""


@dataclass(frozen=True)
class Calibration:
    """calibration_db: dB re 20 uPa of a full-scale sine (AES17); tone_dbfs, spread_db: of the tone; tone_hz: its frequency."""

    calibration_db: float
    tone_dbfs: float
    tone_hz: float
    spread_db: float


def calibrate(samples: Floats, rate: int, level_db: float, where: str) -> Calibration:
    """samples: mono, at least PIECE_S of a tone whose sound pressure level is level_db; where: who heard it, for errors.

    The tone's own power is what counts, unweighted, of its lines in a Hann-windowed spectrum: noise far from it does not.
    Raises InputError saying why it is no such tone.
    """
    size = int(PIECE_S * rate)
    pieces = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    window = np.hanning(size + 1)[:-1]
    power = np.square(np.abs(np.fft.rfft(pieces * window))) * 2 / (size * np.square(window).sum())
    frequency_hz = np.fft.rfftfreq(size, 1 / rate)
    mean = power.mean(axis=0)
    heard = mean * np.square(a_weighting(frequency_hz))
    tone_hz = float(frequency_hz[np.argmax(heard)])
    near = np.abs(frequency_hz - tone_hz) <= 4 / PIECE_S
    levels = [dbfs(float(piece[near].sum())) for piece in power]
    tone_dbfs, spread_db = dbfs(float(mean[near].sum())), max(levels) - min(levels)
    peak = float(np.abs(samples).max())
    if peak >= CLIPPED:
        raise InputError(where, f"the sound is clipped (peak {peak:.2f} of full scale)", "turn its gain down")
    if tone_dbfs < FAINTEST_DBFS:
        fix = "is the calibrator on and tight on the microphone? else turn the gain up"
        raise InputError(where, f"the tone is too faint ({tone_dbfs:.1f} dBFS, less than {FAINTEST_DBFS:g})", fix)
    if not TONE_HZ[0] <= tone_hz <= TONE_HZ[1]:
        fix = "is the calibrator on, and is it one of 1 kHz?"
        raise InputError(where, f"the loudest tone is at {tone_hz:.0f} Hz, not {TONE_HZ[0]:g} to {TONE_HZ[1]:g}", fix)
    rest_db = dbfs(float(heard[~near].sum())) - tone_dbfs
    if rest_db > REST_DB:
        fix = "set the calibrator tight on the microphone, in a quiet place"
        raise InputError(where, f"there is other sound {-rest_db:.0f} dB below the tone, {-REST_DB:g} are needed", fix)
    if spread_db > SPREAD_DB:
        fix = "hold the calibrator still, and switch automatic gain off"
        raise InputError(where, f"the tone is not steady (it wavers by {spread_db:.1f} dB, more than {SPREAD_DB:g})", fix)
    return Calibration(round(level_db - tone_dbfs, 2), round(tone_dbfs, 2), round(tone_hz, 1), round(spread_db, 2))


def listen(device: str, seconds: float) -> tuple[Floats, int, str]:
    """So many seconds of a microphone: samples, rate, and its name. Raises TryAgainError when it gives less, or with holes."""
    wake = threading.Event()
    microphone = Microphone(device, wake)
    where = f"microphone {microphone.device.name}"
    log.info("%s: listening for %g s", where, SETTLE_S + seconds)
    skip = int(SETTLE_S * microphone.rate)
    wanted, heard, blocks = skip + round(seconds * microphone.rate), 0, []
    try:
        while heard < wanted:
            wake.wait(microphone.wait_s(1))
            wake.clear()
            if (block := microphone.read()) is None:
                continue
            if block.first != heard:
                raise TryAgainError(where, "samples were lost", "end what keeps this computer busy, and try again")
            blocks.append(block.samples)
            heard += len(block.samples)
    except SourceLost as lost:
        raise TryAgainError(where, f"{lost}".removeprefix(f"{where}: "), "is it plugged in?") from lost
    microphone.close()
    return np.concatenate(blocks)[skip:wanted], microphone.rate, where

"""A clip as the bytes of a file: FLAC that tells of its event, encrypted if wanted. In memory: no plaintext touches a disk."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import numpy as np
import soundfile

from detector.clips.cut import Cut
from detector.errors import SettingError, install

FULL_SCALE = 1 << 23
"""24 bits hold what a float32 sample does, so nothing is lost of a card of 16 bits or of 24, nor of the mean of two channels of 16;
and FLAC spends nothing on low bits that are always zero: such a file is as large as one of 16 bits."""


def flac(cut: Cut) -> bytes:
    """A whole file. Its tags: title, the label; date, the event's start; artist, node and source; comment, see `about`."""
    samples = np.concatenate(cut.pieces) if cut.pieces else np.zeros(0, np.float32)
    whole = np.clip(np.rint(samples * np.float32(FULL_SCALE)), -FULL_SCALE, FULL_SCALE - 1).astype(np.int32) << 8
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", cut.rate, 1, "PCM_24", format="FLAC") as file:
        file.title, file.date = cut.event["label"], cut.event["start"]
        file.artist = f"{cut.event['node']} {cut.event['source']}"
        file.comment = json.dumps(about(cut), ensure_ascii=False)
        file.write(whole)
    return out.getvalue()


def about(cut: Cut) -> dict[str, object]:
    """Where in the clip its event is: onset_sample, offset_sample (null when the event went on), counted from the clip's first, and
    in seconds; why it ends early, if it does; the event as told last."""
    onset, offset = cut.onset - cut.first, None if cut.offset is None else cut.offset - cut.first
    return {
        "onset_sample": onset,
        "offset_sample": offset,
        "onset_s": round(onset / cut.rate, 6),
        "offset_s": None if offset is None else round(offset / cut.rate, 6),
        "short": cut.short,
        "event": dict(cut.event),
    }


def sealer(recipient: str) -> Callable[[bytes], bytes]:
    """Encrypts to an age public key (https://age-encryption.org/v1). Raises SettingError when it is none or pyrage is missing."""
    try:
        import pyrage
    except ImportError as error:
        raise SettingError("clips.recipient", "needs a package that is not there (pyrage)", install("age")) from error
    try:
        to = [pyrage.x25519.Recipient.from_str(recipient)]
    except pyrage.RecipientError as error:
        raise SettingError("clips.recipient", "is no age public key", "age-keygen prints one: age1...") from error
    return lambda data: pyrage.encrypt(data, to)

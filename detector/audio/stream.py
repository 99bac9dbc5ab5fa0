"""A network stream (camera, Icecast, HLS) as a Source: a thread of its own connects, reads and decodes, and nobody waits for it."""

from __future__ import annotations

import logging
import math
import ssl
import threading
import time
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detector.audio.clock import LEAK
from detector.audio.file import mono
from detector.audio.microphone import COPY_S, Handover
from detector.audio.source import LATE_S, Block, Floats, SourceLost
from detector.audio.url import PROTOCOLS, shown
from detector.errors import ConfigError, install

if TYPE_CHECKING:
    from av import AudioFrame

log = logging.getLogger(__name__)

FORMATS = "rtsp,hls,mp3,aac,ogg,wav,flac,ac3,mpegts,mov,mp4,matroska,webm,asf,flv,au,caf,mpeg,w64"
CODECS = (
    "aac,aac_latm,mp3float,mp3,mp2float,mp2,opus,vorbis,flac,alac,ac3,eac3,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,"
    "pcm_s32be,pcm_f32le,pcm_f32be,pcm_u8,pcm_s8,pcm_mulaw,pcm_alaw,adpcm_g722,g722,g726,g726le,amrnb,amrwb,speex,wmav2"
)
"""What may be taken apart and decoded: sound that is streamed, no picture, nothing that names files."""
POLL_S = 0.02
"""How often a burst that is too large is tried again, until the reader has taken the first of it."""
CONNECT_S = 10.0
"""A server that has not answered by then is asked again later. It has as long again until it is known what it sends."""
STALL_S = 15.0
"""A stream that gives nothing for so long is lost: HLS comes in pieces, mostly of 2 to 10 s."""
BURST_S, SETTLE_S = 20.0, 1.0
"""Icecast and HLS begin with what was heard before, up to so much at once. What comes of it in the first second tells how long ago
that was; from then on nothing is taken before its time, so that times never go back and are never in the future."""
JUMP_S = 0.25
"""Timestamps of cameras tremble by a few hundredths of a second; further than this, sound is missing."""
MOST_BAD = 50
"""Packets in a row that cannot be decoded: one or two are usual where one joins, this is no sound."""
RECORDING = "%s: is a recording of %.0f s, not live: heard in real time, again and again; `urbandetect scan URL` finds its events"
NO_SOUND = "sends nothing that is known as sound"
WORDS = (
    {
        "Input/output error": "cannot be reached, or sends no sound: is the address right?",
        "Invalid argument": NO_SOUND,
        "Invalid data found when processing input": NO_SOUND,
    },
    {"Input/output error": "broke off", "Invalid data found when processing input": "cannot be decoded any more"},
)
"""What ffmpeg's words for errors mean before the first sound, and after it."""
RATES = (1000, 768_000)


class Stream:
    """One stream, connecting or heard. rate: 0 until its first sound; codec, layout: empty until then."""

    def __init__(self, url: str, wake: threading.Event, after_s: float = 0.0) -> None:
        """Begin to connect; wake: set when there is something to read; after_s: monotonic time up to which it was heard before.
        Raises ConfigError where PyAV is missing."""
        av = pyav()
        self.rate, self.ended, self.codec, self.layout = 0, False, "", ""
        self._after_s, self._recorded = after_s, False
        self._zero_s: float | None = None
        """Monotonic time of its sample 0, once it is settled."""
        self._url, self._where, self._wake = url, f"stream {shown(url)}", wake
        self._handover: Handover | None = None
        self._failure = ""
        self._closed = threading.Event()
        self._began_s = time.monotonic()
        """To connect; once there is sound, to be heard."""
        threading.Thread(target=self._run, args=(av,), name=self._where, daemon=True).start()

    def read(self) -> Block | None:
        """All that came since the last call, at most LONGEST_BLOCK_S. Raises SourceLost when it cannot be reached, has ended, or
        nothing has come for STALL_S."""
        failure, handover = self._failure, self._handover
        block = None
        if handover and handover.waiting and (failure or self._settles_s() == 0):
            if self._zero_s is None:  # before anything is taken: there is no more room in a burst for what comes then
                self._zero_s = -handover.end / self.rate + handover.arrived_s
            if block := handover.take():
                ends_s = self._zero_s + (block.first + len(block.samples)) / self.rate  # a decoder that catches up is not late
                block = self._unheard(replace(block, arrived_s=ends_s))
        if block is None and failure and not (handover and handover.waiting):
            raise SourceLost(f"{self._where}: {failure}")
        age_s = time.monotonic() - (handover.arrived_s if handover else self._began_s)
        if block is None and age_s > (STALL_S if handover else 2 * CONNECT_S):
            raise SourceLost(f"{self._where}: {f'no sound for {age_s:.1f} s' if handover else 'does not answer'}")
        return block

    def wait_s(self, samples: int) -> float:
        return max(self._settles_s(), self._handover.wait_s(samples)) if self._handover else 1.0

    def close(self) -> None:
        """Let go: the thread ends with the packet it is at, or when what it waits for has taken too long."""
        self._closed.set()

    def _unheard(self, block: Block) -> Block | None:
        """What of it was not heard before: a server that is asked again begins with sound of before, too."""
        known = len(block.samples) - math.floor((block.arrived_s - self._after_s) * self.rate)
        if known <= 0:
            return block
        return replace(block, samples=block.samples[known:], first=block.first + known) if known < len(block.samples) else None

    def _settles_s(self) -> float:
        """Until SETTLE_S are over, in a stream that is heard."""
        return 0.0 if self._zero_s is not None else max(0.0, self._began_s + SETTLE_S - time.monotonic())

    def _run(self, av: ModuleType) -> None:
        """In a thread of its own: hear until it ends, fails or is closed; the reader says which."""
        try:
            self._hear(av)
            self._failure = "has ended"
        except av.error.ExitError:
            self._failure = "does not answer"
        except _Unusable as error:
            self._failure = f"{error}"
        except Exception as error:  # noqa: BLE001 - in all other words of it the URL may stand, and in that a password
            words = getattr(error, "strerror", None) or type(error).__name__
            self._failure = WORDS[self._handover is not None].get(words, words)
        self._wake.set()

    def _hear(self, av: ModuleType) -> None:
        with av.open(self._url, options=options(self._url), timeout=(CONNECT_S, STALL_S)) as container:
            if not container.streams.audio:
                raise _Unusable("has no sound, only pictures")
            audio, end_s, bad = container.streams.audio[0], None, 0
            if audio.codec_context is None or audio.codec_context.name not in CODECS.split(","):
                raise _Unusable("has sound of a kind that is not known")
            if container.duration and self._url.lower().startswith("http"):
                self._recorded = True
                log.warning(RECORDING, self._where, container.duration / 1e6)
            for packet in container.demux():
                if self._closed.is_set():
                    return
                if packet.stream is not audio:
                    continue
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    bad += 1
                    if bad > MOST_BAD:
                        raise
                    continue
                for frame in frames:
                    bad = 0
                    end_s = self._take(frame, end_s, audio.codec_context.name)

    def _take(self, frame: AudioFrame, expected_s: float | None, codec: str) -> float | None:
        """Hand a frame over; expected_s and the result: the timestamp of what follows, None where there are none."""
        begins_s = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
        if self._handover is None:
            if not RATES[0] <= frame.sample_rate <= RATES[1]:
                raise _Unusable(f"has a sample rate of {frame.sample_rate} Hz")
            self.rate, self.codec, self.layout = frame.sample_rate, codec, frame.layout.name
            self._began_s = time.monotonic()
            if self._recorded:  # nothing of it was sound of before
                self._zero_s = self._began_s
            self._handover = Handover(self.rate, 1, 0.0, BURST_S + LATE_S + COPY_S)
        elif frame.sample_rate != self.rate:
            raise _Unusable(f"goes on at {frame.sample_rate} Hz instead of {self.rate} Hz")
        missing = 0
        if begins_s is not None and expected_s is not None and abs(begins_s - expected_s) > JUMP_S:
            jump_s = begins_s - expected_s  # back, or further than a stream that is heard can: another clock, not a hole
            missing = round(jump_s * self.rate) if 0 < jump_s <= STALL_S else 1
            if self._zero_s is not None:  # no more is missing than there was time for: a clock may have been set
                passed_s = time.monotonic() - self._zero_s - self._handover.end / self.rate + JUMP_S
                missing = max(1, min(missing, round(passed_s * self.rate)))
        self._wait_for(self._handover, missing + frame.samples)
        self._handover.add(mono(floats(frame))[:, None], missing, "jump", time.monotonic())
        if self._handover.enough:
            self._wake.set()
        return None if begins_s is None else begins_s + frame.samples / frame.sample_rate

    def _wait_for(self, handover: Handover, samples: int) -> None:
        """Until so many more may be taken: of what comes at once, BURST_S; then each in its time, and those of a clock that is a
        little fast (see LEAK) a little earlier."""
        end_s, slack_s = (handover.end + samples) / self.rate, LEAK * samples / self.rate
        while not self._closed.is_set():
            if self._zero_s is None:
                early_s = POLL_S if end_s > BURST_S and handover.waiting else 0.0
            else:
                early_s = self._zero_s - slack_s + end_s - time.monotonic()
            if early_s <= 0:
                break
            self._closed.wait(early_s)
        if self._zero_s is not None:
            self._zero_s = min(self._zero_s + slack_s, time.monotonic() - end_s)


class _Unusable(Exception):
    """What comes is no sound that we hear; its words are ours."""


def pyav() -> ModuleType:
    """The av module, silent. Raises ConfigError saying how to install it."""
    try:
        import av
        import av.error
        import av.logging
    except ImportError as error:
        raise ConfigError("input", "a network stream needs PyAV, which is not there", install("stream")) from error
    av.logging.set_level(None)
    av.logging.set_libav_level(av.logging.PANIC)
    return av


def options(url: str) -> dict[str, str]:
    """How ffmpeg is to open it: with what protocols, of video nothing, with the server's certificate checked."""
    scheme = url.partition("://")[0].lower()
    trusted = ssl.get_default_verify_paths()
    found = {
        "protocol_whitelist": PROTOCOLS[scheme],
        "format_whitelist": FORMATS,
        "codec_whitelist": CODECS,
        "allowed_media_types": "audio",
        "rtsp_flags": "prefer_tcp",
        "live_start_index": "-1",
        "tls_verify": "1",
    }
    if bundle := trusted.cafile or trusted.openssl_cafile:
        found["ca_file"] = bundle
    return found


def floats(frame: AudioFrame) -> Floats:
    """A decoded frame as [n, channels] in -1..1, from any of ffmpeg's sample formats."""
    data: NDArray[Any] = frame.to_ndarray()
    samples = data.T if frame.format.is_planar else data.reshape(-1, frame.layout.nb_channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / np.float32(128)
    if samples.dtype.kind == "i":
        return np.asarray(samples / -float(np.iinfo(samples.dtype).min), np.float32)
    return np.asarray(samples, np.float32)

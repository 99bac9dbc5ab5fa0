"""Clips, by the whole daemon over scripted blocks, and the folder they are kept in."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
import time
from collections import Counter, deque
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from detector import daemon, ear
from detector.audio.source import Block
from detector.clips import keeper, shelf
from detector.clips.cut import Cutter, Form
from detector.clips.keeper import Clips
from detector.clips.shelf import Shelf, clips, name_of
from detector.config import ClipSettings, Settings, SourceSettings, ThresholdSettings
from detector.errors import ConfigError, TryAgainError, UrbandetectError
from detector.model import Model
from detector.observer import Observer
from detector.profile import profiles
from detector.publish.stdout import Stdout
from detector.tracker import Change

MODEL_RATE = 8000


class Script:
    """A source that gives these blocks, and ends."""

    def __init__(self, rate, blocks):
        self.rate, self.ended, self._blocks = rate, False, deque(blocks)

    def read(self):
        if self._blocks:
            return self._blocks.popleft()
        self.ended = True
        return None

    def wait_s(self, samples):
        return 0.0

    def close(self):
        pass


class Notes(Observer):
    """What became of every event."""

    def __init__(self):
        self.changes, self.events, self.facts_last, self.ended_by = {}, {}, {}, None

    def event(self, event, change):
        self.changes[event["id"]], self.events[event["id"]] = change, event


class Quiet(Stdout):
    def event(self, event):
        pass


@pytest.fixture(scope="module")
def loudness(loudness_model):
    return Model(loudness_model, "cpu")


def listener(loudness, tmp_path, monkeypatch):
    """Lets the daemon hear blocks with these clips; gives its notes, and the folder."""

    def run(rate, blocks, clips, threshold=None, folder=None):
        folder = folder or tmp_path / "clips"
        wanted = Settings(
            node="street",
            source=(SourceSettings("mic1", input="script"),),
            clips=ClipSettings(**{"folder": str(folder), "labels": ("loud",)} | clips),
            thresholds={"loud": threshold or ThresholdSettings()},
        )
        monkeypatch.setattr(ear, "open_input", lambda *_: Script(rate, blocks))
        monkeypatch.setattr(daemon, "LONGEST_WAIT_S", 0.0)
        hours = profiles(wanted, loudness.description.thresholds, "the test")
        keeps, notes = Clips(wanted, loudness.description), Notes()
        try:
            daemon.Daemon(wanted, loudness, hours, Quiet(), 0.0, lambda: nullcontext((wanted, hours)), [keeps, notes]).run()
        except UrbandetectError as error:
            notes.ended_by = error
        keeps._thread.join()
        keeps._shelf.unlock()
        notes.facts_last = keeps.facts()["clips"]
        return notes, folder

    return run


@pytest.fixture
def hear(loudness, tmp_path, monkeypatch):
    return listener(loudness, tmp_path, monkeypatch)


def blocks_of(sound, sizes, gaps=()):
    """The sound in blocks of these sizes, in turn; blocks of these numbers are lost."""
    blocks, at, number = [], 0, 0
    while at < len(sound):
        size = sizes[number % len(sizes)]
        if number not in gaps:
            blocks.append(Block(sound[at : at + size], at, time.monotonic()))
        at, number = at + size, number + 1
    return blocks


def tags(path):
    with soundfile.SoundFile(path) as file:
        return json.loads(file.comment)


@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 44100]),
    bits=st.sampled_from([16, 24]),
    loud=st.lists(st.tuples(st.floats(0.0, 0.8), st.floats(0.15, 1.2)), min_size=1, max_size=3),
    sizes=st.lists(st.floats(0.03, 1.5), min_size=1, max_size=4),
    gaps=st.sets(st.integers(1, 12), max_size=3),
    around=st.tuples(st.sampled_from([0.0, 0.11, 0.5, 1.3]), st.sampled_from([0.0, 0.2, 1.1])),
    longest=st.sampled_from([0.3, 0.7, 9.0]),
    hold=st.tuples(st.sampled_from([0.1, 0.3]), st.sampled_from([0.1, 0.4, 1.5])),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_a_clip_is_the_recording_from_before_the_onset_to_after_the_offset_to_the_sample(
    loudness, rate, bits, loud, sizes, gaps, around, longest, hold, seed
):
    """Whatever the blocks, the rate and the gaps; a clip that cannot be whole ends at the gap, the end or its longest."""
    seconds = sum(map(sum, loud)) + 0.5
    size = np.full(round(seconds * rate), 0.01)
    at = 0.0
    for quiet, sounding in loud:
        size[round((at + quiet) * rate) : round((at + quiet + sounding) * rate)] = 0.95
        at += quiet + sounding
    noise = np.random.default_rng(seed).uniform(-1, 1, len(size))
    sound = (np.round(noise * size * 2 ** (bits - 1)) / 2 ** (bits - 1)).astype(np.float32)
    blocks = blocks_of(sound, [round(s * rate) for s in sizes], gaps)
    longest = max(longest, sum(around) + 0.1)
    form = {"before_s": around[0], "after_s": around[1], "max_s": longest}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        run = listener(loudness, Path(folder), patch)
        notes, folder = run(rate, blocks, form, ThresholdSettings(min_on_s=hold[0], min_off_s=hold[1]))
        changes = {id_: change for id_, change in notes.changes.items() if change.label == "loud"}
        assert notes.facts_last["kept"] == len(changes) == len(list(clips(folder)))
        for id_, change in changes.items():
            begin, end = run_around(blocks, change, rate)
            onset = max(begin, round(change.onset * rate / MODEL_RATE))
            offset = min(end, round(change.offset * rate / MODEL_RATE))
            first = max(begin, onset - round(around[0] * rate))
            wanted = min(offset + round(around[1] * rate), first + round(longest * rate))
            kept, kept_rate = soundfile.read(folder / notes.events[id_]["clip"], dtype="int32")
            assert kept_rate == rate
            np.testing.assert_array_equal(kept / 2**31, sound[first : min(end, wanted)])
            about = tags(folder / notes.events[id_]["clip"])
            assert about["onset_sample"] == onset - first
            assert about["offset_sample"] in (offset - first, None)
            assert (about["short"] in ("gap", "end")) == (wanted > end)
            assert about["event"]["id"] == id_


def run_around(blocks, change, rate):
    """The samples without a gap around an onset."""
    runs = []
    for block in blocks:
        if not runs or runs[-1][1] != block.first:
            runs.append([block.first, block.first])
        runs[-1][1] += len(block.samples)
    return next(run for run in reversed(runs) if round(run[0] * MODEL_RATE / rate) <= change.onset)


def change_of(phase, onset, offset):
    return Change(phase, "loud", onset, offset, 0.9, 0.9, 0.1, 0.5)


def test_what_is_told_after_a_gap_of_before_it_has_a_clip_of_before_it():
    sound = np.arange(60_000, dtype=np.float32)
    cutter = Cutter(48_000, 8000, 800, Form(0.1, 0.1, 9.0))
    cutter.block(Block(sound[:20_003], 0, 0.0))
    assert cutter.block(Block(sound[40_004:60_000], 40_004, 1.0)) == []
    assert cutter.event("a", {}, change_of("start", 800, 1600)) == []
    (cut,) = cutter.event("a", {}, change_of("end", 800, 3334))  # of 48 kHz: sample 20004, which is one too many
    assert (cut.first, cut.onset, cut.offset, cut.samples, cut.short) == (0, 4800, 20_003, 20_003, "gap")
    np.testing.assert_array_equal(np.concatenate(cut.pieces), sound[:20_003])
    cutter.event("b", {}, change_of("start", 6667, 8000))  # of 48 kHz: sample 40002, before the first there is
    (cut,) = cutter.event("b", {}, change_of("end", 6667, 8000))
    assert (cut.first, cut.onset, cut.offset, cut.short) == (40_004, 40_004, 48_000, "")
    assert cut.samples == 52_800 - 40_004


def test_gaps_closer_than_a_hop_hold_no_memory():
    cutter, block = Cutter(48_000, 22_050, 2048, Form(2.0, 2.0, 30.0)), np.zeros(2400, np.float32)
    for number in range(2000):
        cutter.block(Block(block, number * 2500, 0.0))
    assert cutter.held <= 2 * len(block)


def test_an_event_that_lasts_has_a_clip_that_ends_and_says_so_and_the_memory_does_not_grow(hear, bursts, monkeypatch):
    held = []
    step = keeper.Cutter.stepped

    def watched(self, *how):
        cuts = step(self, *how)
        held.append(self.held)
        return cuts

    monkeypatch.setattr(keeper.Cutter, "stepped", watched)
    notes, folder = hear(8000, blocks_of(bursts(40.0, (3.0, 39.0)), [400]), {"max_s": 5.0})
    (event,) = [event for event in notes.events.values() if event["label"] == "loud"]
    assert event["duration_s"] == 36.0
    about = tags(folder / event["clip"])
    assert (about["short"], about["offset_s"], about["event"]["phase"]) == ("longest", None, "start")
    assert soundfile.info(folder / event["clip"]).frames == 5 * 8000
    assert max(held) <= 8 * 8000
    assert held[-1] <= 4 * 8000


def test_an_event_that_is_told_long_after_its_onset_has_its_sound_from_before(hear, bursts):
    notes, folder = hear(8000, blocks_of(bursts(9.0, (4.0, 8.0)), [400]), {"before_s": 1.0}, ThresholdSettings(min_on_s=3.0))
    (event,) = [event for event in notes.events.values() if event["label"] == "loud"]
    assert tags(folder / event["clip"])["onset_s"] == 1.0
    assert soundfile.info(folder / event["clip"]).frames == (1 + 4 + 1) * 8000


def test_a_quiet_source_holds_no_more_than_what_a_clip_may_need(hear, bursts, monkeypatch):
    held = []
    step = keeper.Cutter.stepped
    monkeypatch.setattr(keeper.Cutter, "stepped", lambda self, *how: [step(self, *how), held.append(self.held)][0])
    hear(8000, blocks_of(bursts(30.0), [400]), {})
    assert max(held) <= (2.0 + 0.1 + 1.1) * 8000


def test_a_clip_tells_of_its_event_and_the_group_may_read_it_whatever_the_umask(hear, bursts):
    mask = os.umask(0o077)
    try:
        notes, folder = hear(8000, blocks_of(bursts(6.0, (3.0, 3.5)), [400]), {})
    finally:
        os.umask(mask)
    (event,) = [event for event in notes.events.values() if event["label"] == "loud"]
    path = folder / event["clip"]
    time_of_day = event["start"][11:].replace(":", "")
    onset = event["id"].rsplit("-", 1)[1]
    assert event["clip"] == f"mic1/{event['start'][:10]}/{time_of_day}_loud_{event['session']}-{onset}.flac"
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, path.parents[1], folder)] == [0o640, *[0o750] * 3]
    with soundfile.SoundFile(path) as file:
        assert (file.title, file.date, file.artist) == ("loud", event["start"], "street mic1")
        assert (file.samplerate, file.subtype, file.frames) == (8000, "PCM_24", 4.5 * 8000)
    about = tags(path)
    assert (about["onset_s"], about["offset_s"], about["short"]) == (2.0, 2.5, "")
    assert about["event"] == event


def test_only_labels_that_are_wanted_have_a_clip(hear, bursts):
    notes, folder = hear(8000, blocks_of(bursts(20.0, (1.0, 15.0)), [4000]), {"labels": ("so_far",)})
    kept = {event["label"]: event["clip"] for event in notes.events.values()}
    assert kept["loud"] is None
    assert [name for name, _ in clips(folder)] == [kept["so_far"]]


def test_a_disk_that_fails_is_said_once_and_clips_are_written_when_it_works_again(hear, bursts, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(keeper, "RETRY_S", 0.01)
    monkeypatch.setattr(keeper, "STOP_S", 20.0)
    folder = tmp_path / "disk"
    folder.touch()  # no folder can be made of it
    tries = []
    lock = Shelf.lock

    def mend(self):
        tries.append(1)
        if len(tries) == 5:
            folder.unlink()
        lock(self)

    monkeypatch.setattr(Shelf, "lock", mend)
    stop = Clips.stop
    monkeypatch.setattr(Clips, "stop", lambda self: self._thread.join(0.5) or stop(self))
    notes, _ = hear(8000, blocks_of(bursts(8.0, (1.0, 1.5), (4.0, 4.5)), [400]), {}, folder=folder)
    assert len(list(clips(folder))) == notes.facts_last["kept"] == 2
    assert (notes.facts_last["dropped"], notes.facts_last["trouble"]) == (0, "")
    said = [record.getMessage() for record in caplog.records if record.name == "detector.clips.keeper"]
    assert said == [
        f"clips {folder}: cannot be written (Not a directory); set another clips.folder, or change who may write there; "
        "detection goes on, and it is tried again",
        f"clips {folder}: they are written again",
    ]


def test_what_more_than_memory_is_for_waits_is_dropped_counted_and_said(hear, bursts, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(keeper, "WAITING_BYTES", 4 * 8000 * 8)
    (tmp_path / "disk").touch()
    loud = [(at, at + 0.5) for at in (1.0, 3.0, 5.0, 7.0)]
    notes, _ = hear(8000, blocks_of(bursts(9.0, *loud), [400]), {"after_s": 1.0}, folder=tmp_path / "disk")
    assert len([event for event in notes.events.values() if event["label"] == "loud"]) == 4
    assert (notes.facts_last["dropped"], notes.facts_last["trouble"]) == (2, "Not a directory")
    said = f"clips {tmp_path / 'disk'}: cannot be written (Not a directory); "
    fix = "set another clips.folder, or change who may write there"
    assert f"{said}{fix}; one is not kept, 1 so far" in caplog.text
    assert f"{notes.ended_by}" == f"{said}4 clips were not kept; {fix}"
    assert notes.ended_by.exit_code == 78


def test_a_clip_that_cannot_be_made_does_not_keep_the_next_from_being_written(hear, bursts, caplog, monkeypatch):
    real, calls = keeper.flac, []

    def fail_first(cut):
        calls.append(cut)
        if len(calls) == 1:
            raise RuntimeError("no such codec")
        return real(cut)

    monkeypatch.setattr(keeper, "flac", fail_first)
    notes, folder = hear(8000, blocks_of(bursts(8.0, (1.0, 1.5), (4.0, 4.5)), [400]), {})
    assert len(list(clips(folder))) == 1
    assert notes.facts_last["dropped"] == 1
    assert "RuntimeError: no such codec" in caplog.text
    assert f"{notes.ended_by}".endswith("internal error: RuntimeError: no such codec; 1 clips were not kept")


class TestEncryption:
    @pytest.fixture
    def keys(self):
        pyrage = pytest.importorskip("pyrage", reason="needs a package: pip install -e '.[age]'")
        identity = pyrage.x25519.Identity.generate()
        return pyrage, identity, str(identity.to_public())

    def test_only_the_private_key_opens_a_clip_and_no_plaintext_is_ever_on_the_disk(
        self, hear, bursts, keys, monkeypatch, tmp_path
    ):
        pyrage, identity, public = keys
        on_disk = []
        monkeypatch.setattr(os, "fsync", lambda _: on_disk.extend(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()))
        notes, folder = hear(8000, blocks_of(bursts(6.0, (3.0, 3.5)), [400]), {"recipient": public})
        ((name, _),) = clips(folder)
        assert name.endswith(".flac.age")
        assert name in [event["clip"] for event in notes.events.values()]
        (sealed,) = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
        assert on_disk == [sealed]
        assert sealed.startswith(b"age-encryption.org/v1")
        assert b"fLaC" not in sealed
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(sealed, [pyrage.x25519.Identity.generate()])
        plain = pyrage.decrypt(sealed, [identity])
        (tmp_path / "plain.flac").write_bytes(plain)
        assert soundfile.info(tmp_path / "plain.flac").frames == 4.5 * 8000

    def test_the_age_program_opens_it(self, hear, bursts, keys, tmp_path):
        if not which("age"):
            pytest.skip("needs age: apt install age")
        _, identity, public = keys
        _, folder = hear(8000, blocks_of(bursts(6.0, (3.0, 3.5)), [400]), {"recipient": public})
        ((name, _),) = clips(folder)
        (tmp_path / "key").write_text(f"{identity}\n")
        command = ["age", "--decrypt", "-i", tmp_path / "key", "-o", tmp_path / "plain.flac", folder / name]
        subprocess.run(command, check=True)
        assert soundfile.info(tmp_path / "plain.flac").frames == 4.5 * 8000

    @pytest.mark.usefixtures("keys")
    def test_a_key_that_is_none_is_refused(self, loudness, tmp_path):
        with pytest.raises(ConfigError, match=r"clips.recipient: is no age public key; age-keygen prints one: age1"):
            Clips(Settings(clips=ClipSettings(str(tmp_path), recipient="age1wrong")), loudness.description)


# The folder


def event_of(label, number, at="2026-11-22T06:15:03.218Z", source="mic1"):
    session = f"{number:012x}"
    return {"id": f"{session}-{label}-800", "label": label, "session": session, "start": at, "source": source}


def moment(at_s):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s)) + f".{round(at_s * 1000) % 1000:03d}Z"


def total(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@given(
    writes=st.lists(st.tuples(st.sampled_from(["siren", "dog_bark", "gun_shot", "engine"]), st.integers(1, 400)), max_size=60),
    most=st.integers(400, 2000),
    restarts=st.sets(st.integers(0, 60), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_never_more_bytes_than_allowed_also_while_writing_and_the_last_of_a_rare_label_outlives_common_ones(writes, most, restarts):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder, sizes = Path(name) / "clips", []
        patch.setattr(os, "fsync", lambda _: sizes.append(total(folder)))  # the new one is there, under its other name
        kept = Shelf(folder, most, 1e9)
        labels_before = Counter()
        for number, (label, size) in enumerate(writes):
            if number in restarts:
                kept.unlock()
                kept = Shelf(folder, most, 1e9)
            kept.lock()
            kept.tidy(1_800_000_000)
            file = name_of(event_of(label, number, moment(1_790_000_000 + number)), ".flac")
            kept.write(file, bytes(size))
            there = list(clips(folder))
            assert (kept.count, kept.size_bytes) == (len(there), total(folder))
            assert kept.size_bytes <= most
            assert file in [each for each, _ in there]  # the newest always stays
            labels = Counter(each.split("_", 1)[1].rpartition("_")[0] for each, _ in there)
            for lost in labels_before.keys() - labels.keys():
                assert max(labels.values()) == 1, lost
            labels_before = labels
        assert max(sizes, default=0) <= most
        kept.unlock()


def test_of_a_label_the_oldest_goes_first_whichever_source_it_is_from(tmp_path):
    kept = Shelf(tmp_path, 250, 1e9)
    kept.lock()
    kept.tidy(1_800_000_000)
    names = [name_of(event_of("siren", n, moment(1_790_000_000 + n), source), ".flac") for n, source in enumerate("bab")]
    for name in (names[1], names[0], names[2]):
        kept.write(name, bytes(100))
    assert {name for name, _ in clips(tmp_path)} == {names[1], names[2]}
    kept.unlock()


def test_clips_go_when_they_are_too_old_but_not_those_of_a_clock_that_was_wrong(tmp_path):
    day_s, now_s = 86_400, 1_800_000_000
    kept = Shelf(tmp_path, 10_000, 7 * day_s)
    kept.lock()
    kept.tidy(now_s - 30 * day_s)
    ages = {"month": now_s - 30 * day_s, "day": now_s - day_s, "never set": 5 * day_s, "eight": now_s - 8 * day_s}
    names = {key: name_of(event_of("siren", n, moment(at_s)), ".flac") for n, (key, at_s) in enumerate(ages.items())}
    for name in names.values():
        kept.write(name, bytes(100))
    kept.tidy(now_s)
    assert {name for name, _ in clips(tmp_path)} == {names["day"], names["never set"]}
    assert kept.count == 2
    assert sorted(path.name for path in (tmp_path / "mic1").iterdir()) == ["1970-01-06", names["day"].split("/")[1]]
    kept.unlock()


def test_files_that_are_not_clips_are_never_touched_and_links_not_followed(tmp_path):
    folder, elsewhere = tmp_path / "clips", tmp_path / "elsewhere"
    old = name_of(event_of("siren", 1, "2024-01-01T00:00:00.000Z"), ".flac")
    for path in (folder / old, elsewhere / "2024-01-01" / Path(old).name):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100))
    mine = [
        "mic1/notes.txt",
        "mic1/2024-01-01/my.flac",
        f"mic1/2024-01-01/{Path(old).name}.bak",
        "siren.flac",
        "mic1/x/a.flac",
    ]
    for name in mine:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(100))
    (folder / "linked").symlink_to(elsewhere)
    link = folder / "mic1/2024-01-01" / Path(old).name.replace("siren", "other")
    link.symlink_to(folder / "siren.flac")
    kept = Shelf(folder, 150, 86_400)
    kept.lock()
    kept.tidy(1_800_000_000)
    kept.write(name_of(event_of("siren", 2, moment(1_799_999_999)), ".flac"), bytes(100))
    assert not (folder / old).exists()
    assert [(folder / name).exists() for name in mine] == [True] * len(mine)
    assert link.is_symlink()
    assert (elsewhere / "2024-01-01" / Path(old).name).exists()
    kept.unlock()


def test_a_folder_that_may_not_be_read_keeps_no_clip_from_being_written(tmp_path, monkeypatch):
    scandir, foreign = os.scandir, tmp_path / "lost+found"
    foreign.mkdir()

    def refuse(path):
        if Path(path) == foreign:  # who runs the tests may be root
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    kept = Shelf(tmp_path, 1000, 86_400)
    kept.lock()
    kept.tidy(1_800_000_000)
    kept.write(name_of(event_of("siren", 1, moment(1_799_999_999)), ".flac"), bytes(100))
    assert kept.count == 1
    kept.unlock()


def test_what_a_crash_left_half_written_is_cleaned_at_the_next_start_and_was_never_a_clip(tmp_path):
    name = name_of(event_of("siren", 1, moment(1_799_999_999)), ".flac")
    half = tmp_path / Path(name).parent / f".{Path(name).name}.part"
    other = half.with_name(".siren.part")
    half.parent.mkdir(parents=True)
    for path in (half, other):
        path.write_bytes(bytes(100))
    assert list(clips(tmp_path)) == []
    kept = Shelf(tmp_path, 1000, 86_400)
    kept.lock()
    kept.tidy(1_800_000_000)
    assert (half.exists(), other.exists(), kept.count) == (False, True, 0)
    kept.unlock()


def test_a_write_that_fails_leaves_nothing_and_a_clip_larger_than_all_is_refused(tmp_path, monkeypatch):
    kept = Shelf(tmp_path, 1000, 86_400)
    kept.lock()
    kept.tidy(1_800_000_000)
    name = name_of(event_of("siren", 1, moment(1_799_999_999)), ".flac")
    with pytest.raises(ConfigError, match=r"0.0 MB are more than clips.max_mb; set a larger one"):
        kept.write(name, bytes(1001))
    full = OSError(28, "No space left on device")

    def fail(_):
        raise full

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        kept.write(name, bytes(100))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert (kept.count, kept.size_bytes) == (0, 0)
    kept.unlock()


def test_a_folder_is_for_one_process(tmp_path):
    first, second = Shelf(tmp_path, 1000, 86_400), Shelf(tmp_path, 1000, 86_400)
    first.lock()
    with pytest.raises(TryAgainError, match="another urbandetect keeps its clips there"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_the_names_of_clips_sort_by_time():
    moments = [1_790_000_000.0, 1_790_000_000.218, 1_790_003_600.0, 1_790_086_400.0]
    names = [shelf._when((name_of(event_of("siren", 1, moment(at_s)), ".flac"), 1)) for at_s in moments]
    assert all(a < b for a, b in pairwise(names))
    assert all(shelf._moment(at_s) <= name < shelf._moment(at_s + 1) for at_s, name in zip(moments, names, strict=True))

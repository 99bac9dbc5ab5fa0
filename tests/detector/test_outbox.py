from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from parts import as_nobody

from detector.errors import ConfigError, TryAgainError
from detector.publish import outbox as outbox_module
from detector.publish.outbox import Outbox

DAY_S = 86_400.0
PLENTY = 1 << 30


@pytest.fixture
def box(tmp_path):
    made = []

    def make(name="outbox.db", max_bytes=PLENTY, max_age_s=DAY_S):
        made.append(Outbox(tmp_path / name, max_bytes, max_age_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


def payloads(box, after=0, most=1000):
    return [message.payload for message in box.after(after, most)]


def test_messages_come_out_in_the_order_in_which_they_went_in_across_restarts(box):
    first = box()
    for i in range(5):
        first.put("a", str(i))
    first.done(first.after(0, 2))
    first.close()
    again = box()
    again.put("a", "5")
    assert payloads(again) == ["2", "3", "4", "5"]
    assert payloads(again, after=again.after(0, 2)[-1].id) == ["4", "5"]


def test_a_message_is_on_the_disk_when_put_returns(box, tmp_path):
    one = box()
    one.put("a", "x" * 100)
    for file in tmp_path.glob("outbox.db*"):  # the files as they are at this moment: a kill or a power cut leaves no less
        shutil.copy(file, tmp_path / file.name.replace("outbox", "copy"))
    assert payloads(box("copy.db")) == ["x" * 100]
    assert one._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert one._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_past_its_size_the_oldest_messages_go_and_are_counted_for_ever(box):
    one = box(max_bytes=10_000)
    for i in range(100):
        one.put("topic", f"{i:0900d}")
    stock = one.stock()
    assert payloads(one) == [f"{i:0900d}" for i in range(100 - stock.messages, 100)]
    assert (stock.messages, stock.dropped) == (10, 90)
    assert 9_000 < stock.size_bytes <= 10_000
    one.close()
    again = box(max_bytes=10_000).stock()
    assert (again.messages, again.size_bytes, again.dropped) == (stock.messages, stock.size_bytes, 90)


def test_past_its_age_a_message_goes_and_is_counted_but_not_for_a_clock_that_was_not_set(box, monkeypatch):
    clock, uptime = [0.0], [0.0]
    monkeypatch.setattr(outbox_module.time, "time", lambda: clock[0] + uptime[0])
    monkeypatch.setattr(outbox_module.time, "monotonic", lambda: uptime[0])
    first = box()
    first.put("a", "before the clock was set")
    first.close()
    clock[0] = 1.8e9
    one = box()
    one.put("a", "old")
    uptime[0] += DAY_S / 2
    one.put("a", "young")
    clock[0] += 30 * DAY_S  # it was wrong after all
    one.put("a", "new")
    assert one.stock().messages == 4
    uptime[0] += DAY_S * 0.6
    clock[0] -= 3600
    one.done(one.after(0, 1))
    assert (one.stock().messages, one.stock().dropped) == (2, 1)
    assert payloads(one) == ["young", "new"]
    assert one.stock().oldest_s == pytest.approx(DAY_S * 0.6)


def test_a_second_process_is_turned_away(box, tmp_path):
    code = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA locking_mode = EXCLUSIVE'); "
        "db.execute('CREATE TABLE message (id)'); db.execute('INSERT INTO message VALUES (1)'); print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "outbox.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(TryAgainError, match="another urbandetect has it open; stop that one") as caught:
            box()
        other.kill()
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("content", [b"x", b"my letters\n" * 500], ids=["short", "long"])
def test_a_file_of_another_kind_is_refused_and_left_alone(box, tmp_path, content):
    (tmp_path / "outbox.db").write_bytes(content)
    with pytest.raises(ConfigError, match=r"is a file of another kind; set another outbox\.path") as caught:
        box()
    assert caught.value.exit_code == 78
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("outbox.db", content)]


def test_the_database_of_another_program_is_refused_and_left_alone(box, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "outbox.db")) as db, db:
        db.execute("CREATE TABLE states (id INTEGER, state TEXT)")
    before = (tmp_path / "outbox.db").read_bytes()
    with pytest.raises(ConfigError, match="is a file of another kind"):
        box()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("outbox.db", before)]


@pytest.mark.parametrize(
    "damage",
    [outbox_module.MAGIC + b"this is no database" * 100, bytes(8192), b"\xa5" * 8192, None],
    ids=["header alone", "zeros", "noise", "a page"],
)
def test_a_damaged_file_is_set_aside_and_said(box, tmp_path, caplog, damage):
    one = box()
    for i in range(200):
        one.put("a", f"{i:0500d}")
    one.close()
    file = tmp_path / "outbox.db"
    content = file.read_bytes()
    damaged = damage or content[:8192] + b"\xff" * 8192 + content[16384:]
    file.write_bytes(damaged)
    again = box()
    again.put("a", "new")
    assert payloads(again) == ["new"]
    assert (tmp_path / "outbox.db.damaged").read_bytes() == damaged
    assert again.stock().dropped == 0  # how many it held nobody knows
    (said,) = caplog.messages
    assert "set aside as outbox.db.damaged" in said
    again.close()
    file.write_bytes(outbox_module.MAGIC + bytes(9000))
    box()
    assert (tmp_path / "outbox.db.damaged").read_bytes() == damaged
    assert (tmp_path / "outbox.db.damaged1").read_bytes() == outbox_module.MAGIC + bytes(9000)


def test_a_file_damaged_while_in_use_is_set_aside_too(box, tmp_path, caplog):
    one = box()
    for i in range(500):
        one.put("a", f"{i:0500d}")
    one._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    one._db.execute("PRAGMA cache_size = 1")
    with (tmp_path / "outbox.db").open("r+b") as file:
        file.write(b"\xff" * (1 << 18))
    for i in range(50):
        one.put("a", f"new {i}")
        one.done(one.after(0, 20)[:10])
    one.put("a", "last")
    assert payloads(one)[-1] == "last"
    assert "set aside" in caplog.text
    assert 400 < one.stock().dropped <= 500
    assert (tmp_path / "outbox.db.damaged").exists()


def test_a_disk_that_takes_nothing_is_said_and_what_waited_in_memory_gets_there(box, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0.05)
    folder = tmp_path / "gone"
    folder.write_text("a file where a folder should be")
    one = box("gone/outbox.db")
    one.put("a", "1")
    one.put("a", "2")
    one.done(one.after(0, 1))
    assert payloads(one) == ["2"]
    assert one.stock().trouble
    assert "messages wait in memory" in caplog.messages[0]
    folder.unlink()
    time.sleep(0.06)
    one.put("a", "3")
    assert (payloads(one), one.stock().trouble) == (["2", "3"], "")
    one.close()
    assert payloads(box("gone/outbox.db")) == ["2", "3"]


@pytest.mark.parametrize("there", [[], ["outbox.db"]], ids=["no file", "a file"])
def test_an_outbox_that_may_not_be_written_is_said_with_the_reason_and_what_to_do(there):
    code = "import sys; from pathlib import Path; from detector.publish.outbox import Outbox; Outbox(Path(sys.argv[1]), 10**6, 1e6)"
    with tempfile.TemporaryDirectory() as folder:
        for name in there:
            Path(folder, name).touch()
            Path(folder, name).chmod(0o666)
        Path(folder).chmod(0o555)
        command = [*as_nobody(), sys.executable, "-c", code, f"{folder}/outbox.db"]
        said = subprocess.run(command, capture_output=True, text=True).stderr
        Path(folder).chmod(0o755)
    why, fix = "cannot be written (Permission denied)", "set another outbox.path, or change who may write there"
    assert said == f"outbox {folder}/outbox.db: {why}; {fix}; 0 messages wait in memory\n"


def test_what_finds_no_place_in_memory_either_is_counted(box, tmp_path, monkeypatch):
    monkeypatch.setattr(outbox_module, "IN_MEMORY", 3)
    monkeypatch.setattr(outbox_module, "RETRY_S", 0.0)
    folder = tmp_path / "gone"
    folder.write_text("")
    one = box("gone/outbox.db")
    for i in range(5):
        one.put("a", str(i))
    assert (payloads(one), one.stock().dropped) == (["2", "3", "4"], 2)
    folder.unlink()
    one.put("a", "5")
    one.close()
    assert box("gone/outbox.db").stock().dropped == 2


class Crashes(RuleBasedStateMachine):
    """Whatever is put, acknowledged and killed in whatever order: each message comes out, in order, until it was acknowledged."""

    @initialize()
    def start(self):
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.generation = 0
        self.count = 0
        self.expected = []
        self.box = self.open()

    def open(self):
        from pathlib import Path

        return Outbox(Path(self.folder.name) / f"{self.generation}.db", PLENTY, DAY_S)

    @rule(many=st.integers(1, 5))
    def put(self, many):
        for _ in range(many):
            self.count += 1
            self.box.put("a", str(self.count))
            self.expected.append(str(self.count))

    @rule(picked=st.sets(st.integers(0, 9)))
    def acknowledge(self, picked):
        waiting = self.box.after(0, 10)
        done = [message for i, message in enumerate(waiting) if i in picked]
        self.box.done(done)
        gone = {message.payload for message in done}
        self.expected = [payload for payload in self.expected if payload not in gone]

    @rule()
    def kill(self):
        from pathlib import Path

        folder, old = Path(self.folder.name), self.generation
        self.generation += 1
        for file in folder.glob(f"{old}.db*"):
            shutil.copy(file, folder / file.name.replace(f"{old}.db", f"{self.generation}.db"))
        self.box._db.close()
        self.box = self.open()

    @rule()
    def restart(self):
        self.box.close()
        self.box = self.open()

    @invariant()
    def nothing_is_lost_doubled_or_out_of_order(self):
        if hasattr(self, "box"):
            assert payloads(self.box, most=10_000) == self.expected
            assert self.box.stock().messages == len(self.expected)

    def teardown(self):
        if hasattr(self, "box"):
            self.box.close()
            self.folder.cleanup()


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_a_disk_that_comes_late_loses_nothing_of_either_side(box, tmp_path, monkeypatch):
    monkeypatch.setattr(outbox_module, "RETRY_S", 0.05)
    before = box("late/outbox.db")
    before.put("a", "of the last time")
    before.close()
    (tmp_path / "late").rename(tmp_path / "away")
    (tmp_path / "late").write_text("not mounted yet")
    one = box("late/outbox.db")
    one.put("a", "1")
    assert payloads(one) == ["1"]
    (tmp_path / "late").unlink()
    (tmp_path / "away").rename(tmp_path / "late")
    time.sleep(0.06)
    one.put("a", "2")
    assert payloads(one) == ["of the last time", "1", "2"]

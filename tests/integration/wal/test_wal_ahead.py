# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking ahead for a recovery: never wrong, never missed when it is gone, and gone when nobody needs it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryobackup.cli._ahead_client import Recovery
from tests.lab import FullDisk, Lab, flip_byte, wait_until
from tests.lab.cleanup import lab_processes
from tests.lab.stores import replace

from .lab import FinishedWal, WalLab
from .replay import Replay

DELIVERED, MISSING, UNKNOWN = 0, 1, 200


@pytest.fixture
def filled(archive: WalLab, finished: FinishedWal) -> WalLab:
    """All segments but the last."""
    for name in finished.segments[:-1]:
        assert archive.push(finished.data_dir, name).returncode == 0
    return archive


@pytest.fixture
def replay(filled: WalLab, finished: FinishedWal) -> Iterator[Replay]:
    made = Replay(filled, finished.system_identifier)
    yield made
    made.end()


def content(finished: FinishedWal, number: int) -> bytes:
    return finished.path(finished.segments[number]).read_bytes()


@pytest.mark.every_location
def test_the_next_segments_need_nobody_any_more(replay: Replay, filled: WalLab, finished: FinishedWal) -> None:
    names = finished.segments
    assert replay.delivers(names[0], content(finished, 0))
    replay.wait_kept(names[1], names[2])
    with filled.away(filled.paths["local"]):
        for number in (1, 2):
            assert replay.delivers(names[number], content(finished, number))
            assert replay.said == ""
        # It was looked for and is not there: that says nothing about now.
        assert replay.ask(names[3]) == UNKNOWN
    assert replay.ask(names[3]) == MISSING


def test_what_was_absent_is_looked_for_each_time(replay: Replay, filled: WalLab, finished: FinishedWal) -> None:
    names = finished.segments
    for number in range(3):
        assert replay.delivers(names[number], content(finished, number))
    for _unused in range(3):
        assert replay.ask(names[3]) == MISSING
        assert replay.ask("00000002.history") == MISSING
    filled.push(finished.data_dir, names[3])
    assert replay.delivers(names[3], content(finished, 3))


def flipped(filled: WalLab, finished: FinishedWal) -> None:
    path = filled.object(finished.system_identifier, finished.segments[2])
    flip_byte(path, path.stat().st_size // 2)


def exchanged(filled: WalLab, finished: FinishedWal) -> None:
    """An authentic object under another's name."""
    one, other = (filled.object(finished.system_identifier, name) for name in finished.segments[1:3])
    replace(other, one.read_bytes())


def cut_off(filled: WalLab, finished: FinishedWal) -> None:
    path = filled.object(finished.system_identifier, finished.segments[2])
    replace(path, path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flipped, exchanged, cut_off])
def test_what_is_damaged_is_told_and_not_delivered(
    replay: Replay, filled: WalLab, finished: FinishedWal, damage: Callable[[WalLab, FinishedWal], None]
) -> None:
    names = finished.segments
    path = filled.object(finished.system_identifier, names[2])
    before = path.read_bytes()
    damage(filled, finished)
    assert replay.delivers(names[0], content(finished, 0))
    assert replay.delivers(names[1], content(finished, 1))
    assert replay.ask(names[2]) == UNKNOWN
    assert "error:" in replay.said
    replace(path, before)
    assert replay.delivers(names[2], content(finished, 2))


def test_nobody_can_write_to_what_waits(replay: Replay, finished: FinishedWal) -> None:
    names = finished.segments
    assert replay.ask(names[0]) == DELIVERED
    replay.wait_kept(names[1], names[2])
    for name in names[1:3]:
        with pytest.raises(PermissionError), replay.kept()[name].open("r+b", buffering=0) as file:
            file.write(b"wrong")
    for number in (1, 2):
        assert replay.delivers(names[number], content(finished, number))


def test_killed_between_any_two_segments(replay: Replay, finished: FinishedWal) -> None:
    for number in range(3):
        assert replay.delivers(finished.segments[number], content(finished, number))
        # Alone it was, and another one begins with the next segment.
        replay.kill_helper()
    assert replay.ask(finished.segments[3]) == MISSING
    assert replay.helpers() == []


def test_killed_while_it_is_asked(replay: Replay, finished: FinishedWal) -> None:
    """Stopped, so that it certainly answers nothing, and killed while the command waits for it."""
    names = finished.segments
    assert replay.ask(names[0]) == DELIVERED
    replay.wait_kept(names[1])
    helper = replay.helper()
    os.kill(helper, 19)
    killer = threading.Timer(1.0, os.kill, (helper, 9))
    killer.start()
    assert replay.delivers(names[1], content(finished, 1))
    killer.join()


def address_of(replay: Replay) -> str:
    fields = Path(f"/proc/{replay.pid}/stat").read_text().rpartition(")")[2].split()
    mine = Recovery(replay.pid, int(fields[19])).address
    return mine.replace(f"-{os.geteuid()}-", f"-{replay.directory.stat().st_uid}-")


def wrong_file() -> list[int]:
    """Of the right size, but open for changes."""
    descriptor = os.memfd_create("wrong", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 16 << 20)
    return [descriptor]


def plain_file() -> list[int]:
    return [os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC)]


@pytest.mark.parametrize("answer", [b"", b"1", b"2", b"0", b"x"])
@pytest.mark.parametrize("files", [list, wrong_file, plain_file])
def test_answers_that_are_none(
    replay: Replay, finished: FinishedWal, answer: bytes, files: Callable[[], list[int]]
) -> None:
    """Of root, who is believed; but not everything."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address_of(replay))
        listening.listen()
        listening.settimeout(30)

        def serve() -> None:
            connection, _unused = listening.accept()
            with connection:
                while connection.recv(4096):
                    pass
                descriptors = files()
                if answer:
                    socket.send_fds(connection, [answer], descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)

        thread = threading.Thread(target=serve)
        thread.start()
        assert replay.delivers(finished.segments[0], content(finished, 0))
        thread.join()


SAY_HERE = """
import contextlib, fcntl, os, socket, sys
address = sys.argv[1]
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind("\\0" + address)
    listening.listen()
    print("ready", flush=True)
    while True:
        connection = listening.accept()[0]
        wrong = os.memfd_create("wrong", os.MFD_ALLOW_SEALING)
        os.write(wrong, b"wrong" * 1000)
        fcntl.fcntl(wrong, fcntl.F_ADD_SEALS, 15)
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(connection, [b"0"], [wrong])
        connection.close()
        os.close(wrong)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_word_does_not_count(replay: Replay, filled: WalLab, finished: FinishedWal) -> None:
    """It takes the place first. That costs the looking ahead, and nothing else."""
    command = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c"]
    process = filled.workspace.popen(
        [*command, SAY_HERE, address_of(replay)[1:]], as_server=False, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    for number in range(3):
        assert replay.delivers(finished.segments[number], content(finished, number))
    assert replay.ask(finished.segments[3]) == MISSING
    assert replay.helpers() == []


def test_another_user_gets_nothing(replay: Replay, filled: WalLab, finished: FinishedWal) -> None:
    """WAL is secret."""
    assert replay.ask(finished.segments[0]) == DELIVERED
    replay.wait_kept(finished.segments[1])
    ask = (
        "import contextlib, os, socket, sys\n"
        "with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):\n"
        "    connection.connect('\\0' + sys.argv[1])\n"
        "    connection.sendall(os.fsencode(sys.argv[2]))\n"
        "    connection.shutdown(socket.SHUT_WR)\n"
        "    answer = socket.recv_fds(connection, 1, 1)[:2]\n"
        "    print(answer if answer != (b'', []) else '')\n"
    )
    command = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c"]
    words = [ask, address_of(replay)[1:], finished.segments[1]]
    result = filled.workspace.run([*command, *words], as_server=False)
    assert result.stdout.strip() == ""
    assert replay.delivers(finished.segments[1], content(finished, 1))


def test_another_configuration_is_another_archive(replay: Replay, filled: WalLab, finished: FinishedWal) -> None:
    names = finished.segments
    assert replay.ask(names[0]) == DELIVERED
    replay.wait_kept(names[1], names[2])
    first = replay.helper()
    # The same words, and something else behind them: nothing is in the other place.
    locations = filled.settings["repository"]["locations"]
    local = locations["local"]
    elsewhere = {"prefix": "other"} if local["type"] == "s3" else {"path": str(filled.directory / "other")}
    locations["local"] = local | elsewhere
    filled.write_config()
    assert replay.ask(names[1]) == UNKNOWN
    locations["local"] = local
    filled.write_config()
    assert replay.delivers(names[1], content(finished, 1))
    wait_until(lambda: first not in replay.helpers(), "the first one has ended")


def test_other_options_are_another_archive(replay: Replay, finished: FinishedWal) -> None:
    names = finished.segments
    assert replay.ask(names[0]) == DELIVERED
    replay.wait_kept(names[1], names[2])
    first = replay.helper()
    replay.options("--system-identifier", "42")
    assert replay.ask(names[1]) == UNKNOWN
    assert "42" in replay.said
    replay.options()
    assert replay.delivers(names[1], content(finished, 1))
    wait_until(lambda: first not in replay.helpers(), "the first one has ended")


def test_two_at_once_do_not_meet(replay: Replay, lab: Lab, runtime: Path, finished: FinishedWal) -> None:
    """Another cluster with the same names of segments, restored by another configuration on the same host."""
    with lab.workspace("other") as workspace:
        cluster = workspace.cluster(settings={"wal_keep_size": "1GB"})
        names = [cluster.switch_wal() for _unused in range(4)]
        assert {*names} & {*finished.segments}
        cluster.stop()
        other = WalLab(workspace, runtime, {"main": cluster.data_dir})
        for name in names:
            assert other.push(cluster.data_dir, name).returncode == 0
        second = Replay(other, int(cluster.system_identifier))
        for number, name in enumerate(names[:3]):
            assert second.delivers(name, (cluster.data_dir / "pg_wal" / name).read_bytes())
            assert replay.delivers(finished.segments[number], content(finished, number))
        replay.kill_helper()
        second.wait_kept(names[3])
        with other.away(other.paths["local"]):
            assert second.delivers(names[3], (cluster.data_dir / "pg_wal" / names[3]).read_bytes())
        second.end()


def test_a_full_disk_of_the_target(filled: WalLab, finished: FinishedWal, full_disk: Callable[..., FullDisk]) -> None:
    """The reason is told as ever, nothing half-written stays, and it goes on when there is room."""
    names = finished.segments
    disk = full_disk(megabytes=24)
    directory = disk.path / "target"
    directory.mkdir()
    filled.workspace.account.own(directory)
    replay = Replay(filled, finished.system_identifier, directory=directory)
    assert replay.delivers(names[0], content(finished, 0))
    replay.wait_kept(names[1], names[2])
    replay.destination.unlink()
    disk.fill(leave_bytes=4 << 20)
    assert replay.ask(names[1]) == UNKNOWN
    assert "No space left" in replay.said
    disk.release()
    for number in (1, 2):
        assert replay.delivers(names[number], content(finished, number))
    replay.destination.unlink()
    replay.end()


def test_it_holds_nothing_of_the_server(replay: Replay, finished: FinishedWal) -> None:
    """Not its standard error, which the collector of logs would wait for; not its directory, which may be unmounted."""
    assert replay.ask(finished.segments[0]) == DELIVERED
    replay.wait_kept(finished.segments[1])
    place = Path(f"/proc/{replay.helper()}")
    assert {os.readlink(place / "fd" / str(number)) for number in range(3)} == {"/dev/null"}
    assert os.readlink(place / "cwd") == "/"
    opened = [os.readlink(entry) for entry in (place / "fd").iterdir()]
    assert [path for path in opened if path.startswith(str(replay.archive.workspace.path))] == []
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    assert int(fields[3]) == replay.helper(), "a session of its own"


def test_it_ends_with_the_recovery_whatever_became_of_its_files(filled: WalLab, finished: FinishedWal) -> None:
    replay = Replay(filled, finished.system_identifier)
    assert replay.ask(finished.segments[0]) == DELIVERED
    replay.helper()
    shutil.rmtree(replay.directory)
    replay.end()


def test_a_recovery_that_is_killed(filled: WalLab, finished: FinishedWal) -> None:
    replay = Replay(filled, finished.system_identifier)
    assert replay.ask(finished.segments[0]) == DELIVERED
    replay.helper()
    os.kill(replay.pid, 9)
    replay.end()


def test_nobody_asks_any_more(filled: WalLab, finished: FinishedWal) -> None:
    """A standby that streams. With a shorter patience than people have."""
    replay = Replay(filled, finished.system_identifier, "--no-look-ahead")
    assert replay.ask(finished.segments[0]) == DELIVERED
    assert replay.helpers() == []
    fields = Path(f"/proc/{replay.pid}/stat").read_text().rpartition(")")[2].split()
    code = (
        "import sys, cryobackup.cli.wal_ahead as w; w.IDLE_SECONDS = 0.5; w_main = sys.modules['cryobackup.cli'].main"
    )
    words = ["wal-ahead", "--recovery", f"{replay.pid}:{fields[19]}", "--after", finished.segments[0]]
    words += ["--segment-size", str(16 << 20), "--", *replay.restore_command.split()[1:-2]]
    python = filled.runtime.resolve().parent / "python3"
    result = filled.workspace.run([python, "-c", code, *words], check=False)
    assert (result.returncode, result.stderr) == (0, "")
    replay.end()


def test_started_once_for_each_recovery(replay: Replay, filled: WalLab, finished: FinishedWal) -> None:
    assert replay.ask(finished.segments[0]) == DELIVERED
    replay.wait_kept(finished.segments[1])
    (running,) = [process for process in lab_processes(filled.workspace.path) if process.pid == replay.helper()]
    words = Path(f"/proc/{running.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    again = filled.workspace.run(["/usr/bin/env", *words], cwd=replay.directory)
    assert again.returncode == 0
    assert replay.helper() == running.pid


def test_switched_off(filled: WalLab, finished: FinishedWal) -> None:
    replay = Replay(filled, finished.system_identifier, "--no-look-ahead")
    for number in range(3):
        assert replay.delivers(finished.segments[number], content(finished, number))
        assert replay.helpers() == []
    replay.end()


def test_by_hand_nothing_is_left_behind(filled: WalLab, finished: FinishedWal) -> None:
    target = filled.directory / "fetched"
    assert filled.get(finished.segments[0], target, cwd=finished.data_dir) == DELIVERED
    assert [process for process in lab_processes(filled.workspace.path) if "wal-ahead" in process.command] == []

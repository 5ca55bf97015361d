# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Careless users: typing errors, missing files, options in odd places. And readers that go away."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from cryobackup import __version__
from cryobackup.cli._commands import COMMANDS

from .conftest import COMMAND, Cli


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"cryobackup {__version__}\n"
    assert cli("--json", "--version").json == {"version": __version__}


def test_help_names_every_command(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    assert result.err == ""
    for name, command in COMMANDS.items():
        assert f"  {name:<10} {command.help}\n" in result.out


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_a_command(cli: Cli, command: str) -> None:
    cli.config.unlink()
    result = cli(command, "--help")
    assert result.code == 0
    assert result.err == ""
    assert result.out.startswith(f"usage: cryobackup {command}")
    assert "--config FILE" in result.out


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "no command given", "--help"),
        (["lst"], "there is no command 'lst'", "Did you mean list?"),
        (["xyzzy"], "there is no command 'xyzzy'", "--help"),
        (["--jsno", "list"], "unknown option --jsno", "Did you mean --json?"),
        (["--verison"], "unknown option --verison", "Did you mean --version?"),
        (["--conf", "x", "list"], "unknown option --conf", "Did you mean --config?"),
        (["info", "--lates", "main"], "unknown option --lates", "Did you mean --latest?"),
        (["info", "--latest", "main", "--lates", "main"], "unknown option --lates", "Did you mean --latest?"),
        (["list", "one", "two"], "unknown argument two", "`cryobackup list --help`"),
        (["info"], "one of the arguments BACKUP --latest is required", "`cryobackup info --help`"),
        (["config", "chek"], "invalid choice: 'chek'", "`cryobackup config --help`"),
        (["key", "show", "--directory"], "expected one argument", "`cryobackup key show --help`"),
        (["--config"], "--config needs the path of a file", "For example"),
        (["list", "--config="], "--config needs the path of a file", "For example"),
        (["--config", "--json", "list"], "--config needs the path of a file", "For example"),
    ],
)
def test_usage(cli: Cli, words: list[str], message: str, hint: str) -> None:
    result = cli(*words)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert message in result.err
    assert hint in result.err
    if "--json" not in words:
        assert result.out == ""
        error = cli("--json", *words).error
        assert error["id"] == "usage"
        assert message in error["message"]


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "{config}", "--json", "config", "check"],
        ["config", "check", "--json", "--config", "{config}"],
        ["config", "--json", "check", "--config={config}"],
        ["--quiet", "--json", "--config={config}", "config", "check"],
    ],
)
def test_common_options_go_anywhere(cli: Cli, words: list[str]) -> None:
    cli.environment.pop("CRYOBACKUP_CONFIG")
    result = cli(*(word.format(config=cli.config) for word in words))
    assert result.code == 0
    assert result.json["clusters"] == ["main"]


def test_path_of_the_configuration_may_be_relative(cli: Cli) -> None:
    assert cli("config", "check", "--config", "config.yml").code == 0


def test_option_wins_over_environment(cli: Cli) -> None:
    result = cli("config", "check", "--json", env={"CRYOBACKUP_CONFIG": "/nowhere"}, stdin="")
    assert result.error["id"] == "config-missing"
    assert cli("config", "check", "--config", str(cli.config), env={"CRYOBACKUP_CONFIG": "/nowhere"}).code == 0


@pytest.mark.parametrize("words", [["config", "check"], ["list"], ["status"], ["init"], ["key", "show"]])
def test_no_configuration(cli: Cli, words: list[str]) -> None:
    cli.config.unlink()
    result = cli("--json", *words)
    assert result.code == 2
    assert result.error["id"] == "config-missing"
    assert str(cli.config) in result.error["message"]


def test_configuration_that_may_not_be_read(cli: Cli) -> None:
    cli.config.chmod(0)
    cli.place.chmod(0o755)
    for parent in cli.place.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o011)
    options = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    result = cli("--json", "config", "check", **options)
    assert result.code == 2
    assert result.error["id"] == "config-unreadable"
    assert "Permission denied" in result.error["message"]


def test_mistakes_in_the_configuration(cli: Cli) -> None:
    cli.config.write_text(
        cli.config.read_text().replace("keys:", "kees:").replace("data_directory: /", "data_directory: ")
    )
    result = cli("config", "check", "--json")
    assert result.code == 2
    assert result.error["id"] == "config-invalid"
    assert "has 3 problems" in result.error["message"]
    assert "did you mean keys?" in result.error["message"]


def test_configuration_that_is_sound(cli: Cli) -> None:
    result = cli("config", "check")
    assert (result.code, result.err) == (0, "")
    assert "is sound" in result.out


def test_configuration_without_a_source(cli: Cli) -> None:
    cli.write_config("one")
    result = cli("config", "check", "--json")
    assert result.code == 0
    assert result.json["warnings"] == ["it names no cluster and no file set: there is nothing to back up"]
    assert "warning: it names no cluster" in result.err


def test_error_that_nobody_foresaw(cli: Cli, tmp_path: Path) -> None:
    """A defect shows where it is, and still gives the one object."""
    program = (
        "import sys; from cryobackup.cli import _commands, main\n"
        "def load(): raise ZeroDivisionError('a defect')\n"
        "command = _commands.COMMANDS['list']._replace(load=load)\n"
        "_commands.COMMANDS['list'] = command\n"
        "_commands.COMMANDS['wal-get'] = _commands.COMMANDS['wal-get']._replace(load=load)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)

    done = run("--json", "list")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["id"] == "internal"
    assert "ZeroDivisionError: a defect" in done.stderr
    assert "Traceback" in done.stderr
    # PostgreSQL takes 1 to 125 for the end of the archive: a defect must not end a recovery.
    assert run("wal-get").returncode == 200
    assert run("wal-get").stdout == ""


def test_usage_error_of_wal_get_stops_postgresql(cli: Cli) -> None:
    assert cli("wal-get").code == 200
    assert cli("wal-get", "--config", "/nowhere", "000000010000000000000001", "x").code == 200


class Typist:
    """Somebody at a terminal who is asked to type a recovery kit."""

    def __init__(self, cli: Cli, *words: str, **options: t.Any) -> None:
        self.terminal, other = pty.openpty()
        self.process = cli.start(*words, "key", "import", stdin=other, **options)
        os.close(other)
        assert self.process.stderr is not None
        # When it asks, its signal handlers are in place.
        assert self.process.stderr.readline().startswith("Type the recovery kit")

    def finish(self) -> tuple[str, str]:
        out, err = self.process.communicate(timeout=60)
        os.close(self.terminal)
        return out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_by_a_signal(cli: Cli, number: signal.Signals) -> None:
    typist = Typist(cli, "--json")
    typist.process.send_signal(number)
    out, err = typist.finish()
    assert typist.process.returncode == 128 + number
    assert json.loads(out)["error"]["id"] == "stopped"
    assert f"stopped by {number.name}" in err
    assert "Traceback" not in err
    assert not cli.keys.exists()


def test_nohup(cli: Cli) -> None:
    typist = Typist(cli, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    typist.process.send_signal(signal.SIGHUP)
    os.write(typist.terminal, b"no kit\n\x04")
    _unused, err = typist.finish()
    assert typist.process.returncode == 1
    assert "this is no recovery kit" in err


def test_reader_goes_away(cli: Cli) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        done = subprocess.run(
            [str(COMMAND), "config", "check"], stdout=nobody, stderr=subprocess.PIPE, env=cli.environment, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b""


def test_output_cannot_be_written(cli: Cli) -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [str(COMMAND), "config", "check"], stdout=full, stderr=subprocess.PIPE, env=cli.environment, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write to standard output: No space left on device\n"


def test_log_goes_nowhere(cli: Cli) -> None:
    """A job goes on when whoever read its log has gone."""
    cli.write_config("one")
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [str(COMMAND), "config", "check"], stdout=subprocess.PIPE, stderr=full, env=cli.environment, check=False
        )
    assert done.returncode == 0
    assert b"is sound" in done.stdout


def test_outputs_are_closed(cli: Cli) -> None:
    script = '"$0" config check >&- 2>&-'
    done = subprocess.run(["sh", "-c", script, str(COMMAND)], env=cli.environment, check=False)
    assert done.returncode == 0


def test_characters_that_the_terminal_lacks(cli: Cli) -> None:
    odd = cli.place / "bäckup.yml"
    cli.config.rename(odd)
    for words in (["config", "check"], ["config", "check", "--json"]):
        result = cli("--config", str(odd), *words, env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
        assert result.code == 0
        assert "b\\xe4ckup.yml" in result.out


def modules_after(program: str) -> set[str]:
    script = f"import sys\n{program}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_version_imports_next_to_nothing() -> None:
    bare = modules_after("")
    extra = modules_after("from cryobackup.cli import main; main(['--version'])") - bare
    assert extra == {"__future__", "cryobackup", "cryobackup.cli"}


def test_commands_import_what_they_use_only(cli: Cli) -> None:
    loaded = modules_after(
        f"from cryobackup.cli import main; main(['config', 'check', '--config', {str(cli.config)!r}])"
    )
    assert "yaml" in loaded
    assert loaded.isdisjoint({"numpy", "cryptography", "msgspec", "zstandard", "blake3", "rich", "psycopg2"})
    assert not any(name.startswith("cryobackup.repository") for name in loaded)

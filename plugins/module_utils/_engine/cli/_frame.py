# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is the same for every command: options, output, errors, exit codes, signals."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import os
import re
import signal
import sys
import typing as t
from pathlib import Path

from .. import __version__
from ..errors import EXIT_DONE, EXIT_FAILED, CryoError
from . import _streams
from ._commands import COMMANDS, Command
from ._parser import Invocation, Parser, UsageError, overview, split, wants_json
from .progress import StandardErrorReporter

if t.TYPE_CHECKING:
    import types
    from collections.abc import Callable, Mapping, Sequence

    from ..config import Config

_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SIGNALS: t.Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked us to stop.

    Passes through the engine like KeyboardInterrupt: on its way everything is put in order.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a command has to say when it came to its end."""

    result: Mapping[str, object]
    """The object that ``--json`` prints: JSON's own types only."""
    exit_code: int = EXIT_DONE
    text: str | Callable[[], str] = ""
    """The same for people. A function is only called when it is wanted."""


class Context:
    """What a command gets besides its own options."""

    def __init__(self, *, config_path: Path | None, json: bool, reporter: StandardErrorReporter) -> None:
        self.json = json
        self.reporter = reporter
        self._config_path = config_path

    @functools.cached_property
    def config_path(self) -> Path:
        from ..config import default_config_path

        return self._config_path or default_config_path()

    @functools.cached_property
    def config(self) -> Config:
        """The configuration, read when first asked for. Raises ConfigError."""
        from ..config import load_config

        return load_config(self.config_path)

    def now(self) -> dt.datetime:
        """The time of this host, aware, UTC."""
        return dt.datetime.now(dt.UTC)


def main(argv: Sequence[str]) -> int:
    """Run the command that ``argv`` names. Prints its outcome or its error. Returns the exit code."""
    _streams.prepare()
    # numpy's linear algebra, which nothing here uses, starts a thread for each processor when it is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    end = _End(json_wanted=wants_json(argv))
    with end:
        _catch_signals()
        invocation = split(argv)
        end.command = COMMANDS.get(invocation.command or "")
        end.exit_code = _print_outcome(_outcome(invocation, end.command), end.json_wanted)
    return end.exit_code


class _End:
    """The last stop of every error: what leaves the ``with`` block is told, once, and becomes an exit code."""

    def __init__(self, *, json_wanted: bool) -> None:
        self.json_wanted = json_wanted
        self.command: Command | None = None
        self.exit_code = EXIT_FAILED

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> bool:
        if error is None:
            return False
        if isinstance(error, SystemExit):  # argparse has printed its help
            return False
        _release_signals()
        if isinstance(error, Stopped):
            self.exit_code = error.exit_code
        elif self.command is not None and self.command.failure_exit is not None:
            self.exit_code = self.command.failure_exit
        elif isinstance(error, CryoError):
            self.exit_code = error.exit_code
        _print_error(_as_cryo_error(error), self.json_wanted)
        return True


def _as_cryo_error(error: BaseException) -> CryoError:
    """The error in the words of this program. Prints where it comes from if that is a defect."""
    if isinstance(error, CryoError):
        return error
    if isinstance(error, Stopped):
        return CryoError(
            f"stopped by {error.name}",
            hint="What was finished is safe, and nothing half-done counts. Run it again when it suits.",
            id="stopped",
        )
    if isinstance(error, ModuleNotFoundError):
        return CryoError(
            f"the Python module {error.name} is not installed for {sys.executable}",
            hint="Install it there, or run the `runtime` role again.",
            id="missing-module",
        )
    import traceback

    _streams.Log().line("".join(traceback.format_exception(error)).rstrip("\n"))
    return CryoError(
        f"{type(error).__name__}: {error}",
        hint="This is a defect of cryobackup. Please report it with the lines on standard error.",
        id="internal",
    )


def _outcome(invocation: Invocation, command: Command | None) -> Outcome:
    if invocation.version:
        return Outcome({"version": __version__}, text=f"cryobackup {__version__}")
    if invocation.help or command is None:
        text = overview(COMMANDS.values())
        if not invocation.help:
            raise UsageError("no command given", hint="`cryobackup --help` lists the commands.")
        return Outcome({"help": text}, text=text)
    module = command.load()
    parser = Parser.of_command(command.name, command.help)
    module.add_arguments(parser)
    args = parser.parse(invocation.rest)
    reporter = StandardErrorReporter(quiet=invocation.quiet)
    context = Context(config_path=invocation.config, json=invocation.json, reporter=reporter)
    try:
        outcome = module.run(args, context)
    finally:
        reporter.close()
    if reporter.warnings and "warnings" not in outcome.result:
        return dataclasses.replace(outcome, result={**outcome.result, "warnings": reporter.warnings})
    return outcome


def _print_outcome(outcome: Outcome, json_wanted: bool) -> int:
    """Returns the exit code: the outcome's, or that of a failure to tell it."""
    _release_signals()
    if json_wanted:
        text = _as_json(outcome.result)
    else:
        text = outcome.text if isinstance(outcome.text, str) else outcome.text()
    return outcome.exit_code if _streams.write_result(text) else max(outcome.exit_code, EXIT_FAILED)


def _print_error(error: CryoError, json_wanted: bool) -> None:
    hint = f"\nhint: {error.hint}" if error.hint else ""
    _streams.Log().line(f"error: {error.message}{hint}")
    if json_wanted:
        _streams.write_result(_as_json({"error": error.as_dict()}))


def _as_json(result: Mapping[str, object]) -> str:
    """One line. Names that are not UTF-8 come out with their bytes as ``\\xff``, never as broken JSON."""
    text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    return _LONE_SURROGATE.sub(lambda match: f"\\\\x{ord(match[0]) & 0xFF:02x}", text)


def _catch_signals() -> None:
    """Turn the first signal into Stopped, raised in the main thread; a second one ends the process."""

    def stop(number: int, _frame: types.FrameType | None) -> t.NoReturn:
        _release_signals()
        raise Stopped(number)

    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, stop)


def _release_signals() -> None:
    """From here on a signal ends the process: it must not add a second object to what is printed."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)

# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between Ansible and the engine: the only file that knows both.

PRIVATE to the collection. A module hands its options to ``run`` with a function that calls the engine;
here are the options that several modules share (each one as in the documentation fragment of the same
name), what an error, a warning and a partial result become, and what Ansible can carry as a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import functools
import os
import re
import signal
import sys
import types
import typing as t
from pathlib import Path, PurePath

from ansible.module_utils.basic import AnsibleModule

from ._engine.errors import EXIT_DAMAGE, EXIT_DONE, EXIT_FAILED, EXIT_PARTIAL, CryoError
from ._engine.events import Silent

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ._engine.config import Config

Fields: t.TypeAlias = "dict[str, t.Any]"

OLDEST_PYTHON = (3, 11)
# What is imported, and the package that has it. All of them, whatever a module needs: a host is fit or it is not.
LIBRARIES = {
    "blake3": "blake3",
    "cryptography.hazmat.primitives.hpke": "cryptography 47 or newer",
    "google_crc32c": "google-crc32c",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "psycopg2": "psycopg2-binary",
    "yaml": "PyYAML",
    "zstandard": "zstandard",
}


def config_option() -> Fields:
    return {"config": {"type": "path", "default": "/etc/cryobackup/config.yml"}}


def partial_option() -> Fields:
    return {"fail_on_partial": {"type": "bool", "default": True}}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the work of a module ended, if not with an error."""

    msg: str
    changed: bool
    result: Mapping[str, t.Any]
    """What the module returns, of whatever types: see ``plain``."""
    exit_code: int = EXIT_DONE
    """What the command line would have ended with."""
    diff: Mapping[str, str] | None = None


class Task:
    """What the work of a module gets."""

    def __init__(self, module: AnsibleModule) -> None:
        self.options: Mapping[str, t.Any] = module.params
        self.check_mode: bool = module.check_mode
        self.reporter = Silent()

    @functools.cached_property
    def config(self) -> Config:
        """Read when first asked for. Raises ConfigError."""
        from ._engine.config import load_config

        return load_config(Path(self.options["config"]))

    @staticmethod
    def now() -> dt.datetime:
        """The time of this host, aware."""
        return dt.datetime.now(dt.UTC)


class Stopped(BaseException):
    """A signal asked us to stop: on its way through the engine, everything is put in order."""


def run(
    work: Callable[[Task], Outcome],
    argument_spec: Mapping[str, t.Any],
    *,
    mutually_exclusive: Sequence[Sequence[str]] = (),
    required_one_of: Sequence[Sequence[str]] = (),
    required_if: Sequence[Sequence[t.Any]] = (),
) -> t.NoReturn:
    """Do the work of a module and tell Ansible how it ended."""
    module = AnsibleModule(
        argument_spec=dict(argument_spec),
        mutually_exclusive=list(mutually_exclusive),
        required_one_of=list(required_one_of),
        required_if=list(required_if),
        supports_check_mode=True,
    )
    _require_fit_interpreter(module)
    task = Task(module)
    try:
        with _stopping_on_signals():
            outcome = work(task)
    except CryoError as error:
        _warn(module, task)
        _fail(module, error)
    except Stopped as stopped:
        _warn(module, task)
        hint = "What was finished is safe, and nothing half-done counts. Run it again when it suits."
        _fail(module, CryoError(f"stopped by {stopped}", hint=hint, id="stopped"))
    _warn(module, task)
    _exit(module, outcome)


def _exit(module: AnsibleModule, outcome: Outcome) -> t.NoReturn:
    result = {**plain(outcome.result), "changed": outcome.changed, "exit_code": outcome.exit_code}
    if outcome.diff is not None:
        result["diff"] = plain(outcome.diff)
    msg = plain(outcome.msg)
    if outcome.exit_code != EXIT_DONE:
        if outcome.exit_code not in _tolerated(module.params):
            module.fail_json(msg=msg, **result)
        module.warn(msg)
    module.exit_json(msg=msg, **result)


def _tolerated(options: Mapping[str, t.Any]) -> set[int]:
    """Exit codes that are no failure, because the user said so."""
    wishes = {"fail_on_partial": EXIT_PARTIAL, "fail_on_damage": EXIT_DAMAGE}
    return {code for name, code in wishes.items() if options.get(name) is False}


def _fail(module: AnsibleModule, error: CryoError) -> t.NoReturn:
    fields = plain(error.as_dict())
    fields = {**fields, "hint": in_options(fields["hint"], module.argument_spec)}
    msg = fields["message"]
    if fields["hint"]:
        msg = f"{msg.rstrip('.')}. {fields['hint']}"
    module.fail_json(msg=msg, error=fields, exit_code=error.exit_code)


def _warn(module: AnsibleModule, task: Task) -> None:
    for text in task.reporter.warnings:
        module.warn(in_options(plain(text), module.argument_spec))


_COMMAND = re.compile(r"(`cryobackup [^`]*`)")
_OPTION = re.compile(
    r"`--(?P<quoted>[a-z][a-z-]*)(?: (?P<with>[^`]+))?`"
    r"|--(?P<bare>[a-z][a-z-]*)(?:[ =](?P<value>[A-Z]{2,}\b|latest\b|current\b|[0-9/][^\s,;)`]*[^\s,;)`.:]|[0-9]))?"
)


def in_options(text: str, spec: Mapping[str, Mapping[str, t.Any]]) -> str:
    """What the engine says of options of the command line, in words of the module, where it has such an option.

    ``--bin-directory`` becomes ```bin_directory```, ``--timeline 3`` becomes ```timeline: 3```. What stands in a whole
    command is left as it is: that is to be run by hand.
    """

    def of_module(match: re.Match[str]) -> str:
        name = (match["quoted"] or match["bare"]).replace("-", "_")
        value = match["with"] or match["value"]
        known = next((each for each in (name, f"{name}s") if each in spec), None)
        if known is None:
            return match[0]
        if spec[known].get("type") == "bool":
            return f"`{known}: true`"
        placeholder = value is None or value.isupper()
        return f"`{known}`" if placeholder or spec[known].get("type") == "dict" else f"`{known}: {value}`"

    return "".join(part if _COMMAND.fullmatch(part) else _OPTION.sub(of_module, part) for part in _COMMAND.split(text))


def _require_fit_interpreter(module: AnsibleModule) -> None:
    """Fail with words instead of a traceback when this Python cannot run the engine."""
    # Compared at run time: linters take a test against the version they check for as decided.
    if sys.version_info[:2] < tuple(OLDEST_PYTHON):
        problem = f"is Python {sys.version_info[0]}.{sys.version_info[1]}, and 3.11 is the oldest that will do"
    else:
        missing = [package for name, package in LIBRARIES.items() if not _can_import(name)]
        if not missing:
            return
        problem = f"lacks the Python packages {', '.join(missing)}"
    hint = (
        "Set ansible_python_interpreter to the interpreter of the environment that holds the engine's packages, "
        "or install them for this one."
    )
    module.fail_json(
        msg=f"{sys.executable} {problem}. {hint}",
        error={"id": "interpreter", "message": f"{sys.executable} {problem}", "hint": hint},
        exit_code=EXIT_FAILED,
    )


def _can_import(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def _stopping_on_signals() -> Iterator[None]:
    """Inside, the first signal that asks to end raises Stopped, and a second one ends the process."""

    def stop(number: int, _frame: types.FrameType | None) -> t.NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def capped(items: Sequence[t.Any], most: int = 100) -> list[t.Any]:
    """The first of many: results travel, are stored and shown."""
    return list(items[:most])


def plain(value: t.Any) -> t.Any:
    """The value in the types of JSON, and in text that is UTF-8.

    Bytes of a file name that are not UTF-8 come out as ``\\xff``: with anything else, Ansible refuses
    the whole result.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, PurePath):
        return plain(os.fspath(value))
    if isinstance(value, (dt.datetime, dt.date)):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "items"):
        return {plain(key) if isinstance(key, (str, bytes)) else str(key): plain(each) for key, each in value.items()}
    if hasattr(value, "__iter__"):
        return [plain(each) for each in value]
    raise TypeError(f"a result cannot hold {type(value).__name__}")

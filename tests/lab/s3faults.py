# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong between a client and an object store. Given to ``S3Proxy.fault``.

Each fault is a value: what it does is told by the fields, when it does it by the proxy's rule.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import format_datetime, parsedate_to_datetime
from typing import Literal
from urllib.parse import unquote
from xml.sax.saxutils import unescape


@dataclass
class Request:
    """A request as it came. ``headers`` are pairs in their order, with the names as the client wrote them."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    kind: str = ""
    """put, part, begin, complete, abort, get, head, list, versions, delete, or other."""
    bucket: str = ""
    key: str = ""

    def header(self, name: str) -> str | None:
        """The value of a header, whatever its case."""
        return next((value for known, value in self.headers if known.lower() == name.lower()), None)


@dataclass
class Answer:
    """An answer as it goes back."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def set(self, name: str, value: str | None) -> None:
        """Replace a header; None removes it."""
        self.headers = [(known, old) for known, old in self.headers if known.lower() != name.lower()]
        if value is not None:
            self.headers.append((name, value))

    def get(self, name: str) -> str | None:
        """The value of a header, whatever its case."""
        return next((value for known, value in self.headers if known.lower() == name.lower()), None)


@dataclass(frozen=True)
class Refuse:
    """Answer with an error, as S3 words it. ``carried_out``: only after the request had its effect."""

    status: int
    code: str
    retry_after: int | None = None
    carried_out: bool = False

    def answer(self, request: Request) -> Answer:
        text = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>a test's fault</Message></Error>"
        headers = [("Content-Type", "application/xml"), ("Date", format_datetime(_now(), usegmt=True))]
        if self.retry_after is not None:
            headers.append(("Retry-After", str(self.retry_after)))
        return Answer(self.status, self.code, headers, b"" if request.method == "HEAD" else text.encode())


SLOW_DOWN = Refuse(503, "SlowDown")
INTERNAL_ERROR = Refuse(500, "InternalError")
TOO_MANY = Refuse(429, "TooManyRequests", retry_after=1)
SKEWED = Refuse(403, "RequestTimeTooSkewed")
LOST_BY_ERROR = Refuse(500, "InternalError", carried_out=True)
"""The request was carried out, and an error is what the client hears."""


@dataclass(frozen=True)
class Reset:
    """Break the connection off with a reset.

    ``before`` the body of the request is read, in the ``middle`` of it, in the middle of the body that is ``answered``,
    or ``after`` the request was carried out and before the answer: the acknowledgement is lost.
    """

    when: Literal["before", "middle", "after", "answered"] = "before"


LOST_ACKNOWLEDGEMENT = Reset("after")


@dataclass(frozen=True)
class Silence:
    """Take the request and never answer, until the rule ends. ``carried_out``: it had its effect all the same."""

    carried_out: bool = False


@dataclass(frozen=True)
class Slow:
    """Pass the bodies on at so many bytes a second."""

    bytes_per_second: int


@dataclass(frozen=True)
class CutAnswer:
    """Send so much of the answer's body only, then close the connection in order."""

    share: float = 0.5


@dataclass(frozen=True)
class CutRequest:
    """Pass so much of the request's body on to the store only, then close that connection; and reset the client's."""

    share: float = 0.5


@dataclass(frozen=True)
class Strip:
    """Take a header out of the request, and sign what is left: a store that does not know the header."""

    header: str = "If-None-Match"


@dataclass(frozen=True)
class FlipRequest:
    """Change a byte of the request's body on its way; a body that is shorter than that is counted round."""

    at: int = 0
    change: int = 0x01

    def apply(self, request: Request) -> None:
        if request.body:
            request.body = _flipped(request.body, self.at, self.change)


@dataclass(frozen=True)
class Alter:
    """Change the answer on its way back."""

    how: Callable[[Answer], None] = field(repr=False)


def flip(at: int = 0, change: int = 0x01) -> Alter:
    """Change a byte of the answer's body."""

    def how(answer: Answer) -> None:
        if answer.body:
            answer.body = _flipped(answer.body, at, change)

    return Alter(how)


def shift_date(seconds: float) -> Alter:
    """The store's clock, as its answers tell it, is ahead by so many seconds."""

    def how(answer: Answer) -> None:
        told = answer.get("Date")
        moment = parsedate_to_datetime(told) if told else _now()
        answer.set("Date", format_datetime(moment + datetime.timedelta(seconds=seconds), usegmt=True))

    return Alter(how)


def lie(header: str, value: str) -> Alter:
    """A header of the answer says something else; it is not added where it was not."""

    def how(answer: Answer) -> None:
        if answer.get(header) is not None:
            answer.set(header, value)

    return Alter(how)


LYING_ETAG = lie("ETag", '"00000000000000000000000000000000"')
LYING_CHECKSUM = lie("x-amz-checksum-crc32c", "AAAAAA==")


def hide(pattern: str) -> Alter:
    """Lists lack the objects whose names match: a store whose lists lag behind."""

    def how(answer: Answer) -> None:
        text = answer.body.decode()
        for item in re.findall(r"<Contents>.*?</Contents>", text, re.DOTALL):
            key = re.search(r"<Key>(.*?)</Key>", item)
            if key and re.search(pattern, unquote(unescape(key.group(1)))):
                text = text.replace(item, "")
        answer.body = text.encode()

    return Alter(how)


def _flipped(data: bytes, at: int, change: int) -> bytes:
    changed = bytearray(data)
    changed[at % len(changed)] ^= change
    return bytes(changed)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


Fault = Refuse | Reset | Silence | Slow | CutAnswer | CutRequest | Strip | FlipRequest | Alter

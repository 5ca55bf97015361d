# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A proxy between S3 clients and the real object store that breaks what a test wants broken.

With TLS by the session's authority in front, without behind. Requests are passed on as they are, the host's name
included, so that their signatures hold. Requests and answers are kept whole in memory: a fault can then be exact.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import hmac
import http.client
import random
import re
import socket
import ssl
import struct
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import s3faults
from .ceph import Gateway
from .network import LOOPBACK, free_ports
from .s3faults import Alter, Answer, CutAnswer, CutRequest, Fault, FlipRequest, Refuse, Request, Reset, Silence, Slow

HEAD_LIMIT = 256 << 10
CONNECT = "connect"
"""The kind of a connection that is accepted, before its TLS handshake: rules with it break whole connections."""


@dataclass(eq=False)
class Rule:
    """When a fault happens."""

    fault: Fault
    kinds: frozenset[str]
    key: re.Pattern[str]
    count: int | None
    skip: int
    probability: float
    chance: random.Random
    over: threading.Event = field(default_factory=threading.Event)
    hits: int = 0
    """How often it has happened."""
    seen: int = 0

    def strikes(self, kind: str, key: str) -> bool:
        """Whether it happens to this request; counts it. Called under the proxy's lock."""
        if (self.kinds and kind not in self.kinds) or not self.key.search(key):
            return False
        if kind == CONNECT and CONNECT not in self.kinds:
            return False
        if self.count is not None and self.hits >= self.count:
            return False
        self.seen += 1
        if self.seen <= self.skip or self.chance.random() >= self.probability:
            return False
        self.hits += 1
        return True


class Broken(Exception):
    """The client's connection is to end: in order, or with a reset."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


class S3Proxy:
    """A proxy in front of a gateway. Close it.

    Attributes:
        url: Its endpoint, with TLS; clients that trust the gateway's ``ca_file`` trust it.
        requests: How many requests came, by kind (put, part, begin, complete, abort, get, head, list, versions,
            delete, other).
        log: Kind, key, and status of each answer that was sent, in order; status 0 where none was.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.requests: collections.Counter[str] = collections.Counter()
        self.log: list[tuple[str, str, int]] = []
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*gateway.authority.issue("proxy"))
        self._backend = urllib.parse.urlsplit(gateway.http_url).port
        (self._port,) = free_ports(1)
        self.url = f"https://{LOOPBACK}:{self._port}"
        self._listener = socket.create_server((LOOPBACK, self._port), backlog=128)
        self._accepting = threading.Thread(target=self._accept, name="s3proxy", daemon=True)
        self._accepting.start()

    @contextlib.contextmanager
    def fault(
        self,
        fault: Fault,
        kinds: str | Sequence[str] = (),
        *,
        key: str = "",
        count: int | None = None,
        skip: int = 0,
        probability: float = 1.0,
        seed: int = 1,
    ) -> Iterator[Rule]:
        """Let a fault happen for as long as this context lasts.

        Args:
            fault: One of ``s3faults``.
            kinds: Kinds of requests that it happens to; all by default. ``connect``: new connections, to which
                Reset and Silence can happen.
            key: A regular expression to be found in the object's name.
            count: How often it happens at most.
            skip: How many requests that match pass before.
            probability: Of those left, how many it happens to, drawn with ``seed``.
        """
        words = [kinds] if isinstance(kinds, str) else kinds
        chance = random.Random(seed)
        rule = Rule(fault, frozenset(words), re.compile(key), count, skip, probability, chance)
        with self._lock:
            self._rules.append(rule)
        try:
            yield rule
        finally:
            with self._lock:
                self._rules.remove(rule)
            rule.over.set()

    def close(self) -> None:
        """End it; connections are reset."""
        self._closed.set()
        with contextlib.suppress(OSError):
            # Wakes the accepting thread, which closing alone would not.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)
        with self._lock:
            for rule in self._rules:
                rule.over.set()
            connections = dict(self._connections)
        for connection, thread in connections.items():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(10)

    # Connections

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _unused = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="s3proxy", daemon=True)
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        connection = plain
        reset = False
        try:
            self._connected(plain)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self._context.wrap_socket(plain, server_side=True)
            with self._lock:
                # The plain socket is detached: only the new one can be shut down.
                self._connections[connection] = self._connections.pop(plain)
            with connection.makefile("rb") as stream:
                while self._exchange(connection, stream):
                    pass
        except Broken as broken:
            reset = broken.reset
        except (OSError, ValueError):
            # Clients go when they like; what they sent may be half a request.
            pass
        finally:
            if reset:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            with self._lock:
                self._connections.pop(connection, None)
                self._connections.pop(plain, None)

    def _connected(self, plain: socket.socket) -> None:
        for rule in self._striking(CONNECT, ""):
            if isinstance(rule.fault, Silence):
                self._hold(rule)
            raise Broken(reset=True)

    def _striking(self, kind: str, key: str) -> list[Rule]:
        with self._lock:
            return [rule for rule in self._rules if rule.strikes(kind, key)]

    def _hold(self, rule: Rule) -> None:
        rule.over.wait()
        raise Broken(reset=True)

    def _exchange(self, connection: socket.socket, stream: Any) -> bool:
        """One request and its answer; whether another one may follow."""
        request = read_head(stream)
        if request is None:
            return False
        with self._lock:
            self.requests[request.kind] += 1
            place = len(self.log)
            self.log.append((request.kind, request.key, 0))
        rules = self._striking(request.kind, request.key)
        self._receive(connection, stream, request, rules)
        answer = self._answer(request, rules)
        self._send(connection, request, answer, rules)
        with self._lock:
            self.log[place] = (request.kind, request.key, answer.status)
        return True

    def _receive(self, connection: socket.socket, stream: Any, request: Request, rules: list[Rule]) -> None:
        when = {rule.fault.when for rule in rules if isinstance(rule.fault, Reset)}
        if "before" in when:
            raise Broken(reset=True)
        if (request.header("Expect") or "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "middle" in when:
            stream.read(int(request.header("Content-Length") or 0) // 2)
            raise Broken(reset=True)
        request.body = read_body(stream, request)

    def _answer(self, request: Request, rules: list[Rule]) -> Answer:
        for rule in rules:
            fault = rule.fault
            if isinstance(fault, Refuse) and not fault.carried_out:
                return fault.answer(request)
            if isinstance(fault, Silence) and not fault.carried_out:
                self._hold(rule)
            if isinstance(fault, FlipRequest):
                fault.apply(request)
            if isinstance(fault, s3faults.Strip):
                self._strip(request, fault.header)
            if isinstance(fault, Slow):
                self._pace(rule, len(request.body) / fault.bytes_per_second)
        cut = next((rule.fault for rule in rules if isinstance(rule.fault, CutRequest)), None)
        answer = self._forward(request, cut)
        for rule in rules:
            fault = rule.fault
            if isinstance(fault, Refuse):
                answer = fault.answer(request)
            elif isinstance(fault, Silence):
                self._hold(rule)
            elif isinstance(fault, Reset) and fault.when == "after":
                raise Broken(reset=True)
            elif isinstance(fault, Alter):
                fault.how(answer)
        return answer

    def _forward(self, request: Request, cut: CutRequest | None) -> Answer:
        with socket.create_connection((LOOPBACK, self._backend or 0), timeout=300) as store:
            lines = [f"{request.method} {request.target} HTTP/1.1"]
            dropped = ("expect", "connection", "transfer-encoding", "content-length")
            lines += [f"{name}: {value}" for name, value in request.headers if name.lower() not in dropped]
            lines += [f"Content-Length: {len(request.body)}", "Connection: close", "", ""]
            store.sendall("\r\n".join(lines).encode("latin-1"))
            if cut is not None:
                store.sendall(request.body[: int(len(request.body) * cut.share)])
                # It may finish a request whose connection ends: then the client does not know either.
                raise Broken(reset=True)
            store.sendall(request.body)
            response = http.client.HTTPResponse(store, method=request.method)
            with response:
                response.begin()
                body = response.read()
                return Answer(response.status, response.reason, response.getheaders(), body)

    def _send(self, connection: socket.socket, request: Request, answer: Answer, rules: list[Rule]) -> None:
        answer.set("Transfer-Encoding", None)
        answer.set("Connection", None)
        if request.method != "HEAD" and answer.status != 204:
            answer.set("Content-Length", str(len(answer.body)))
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        for rule in rules:
            fault = rule.fault
            if isinstance(fault, CutAnswer):
                connection.sendall(head + answer.body[: int(len(answer.body) * fault.share)])
                raise Broken(reset=False)
            if isinstance(fault, Reset) and fault.when == "answered":
                connection.sendall(head + answer.body[: len(answer.body) // 2])
                raise Broken(reset=True)
            if isinstance(fault, Slow):
                connection.sendall(head)
                self._trickle(connection, answer.body, rule, fault.bytes_per_second)
                return
        connection.sendall(head + answer.body)

    def _trickle(self, connection: socket.socket, body: bytes, rule: Rule, speed: int) -> None:
        piece = max(1, speed // 10)
        for start in range(0, len(body), piece):
            connection.sendall(body[start : start + piece])
            self._pace(rule, piece / speed)

    @staticmethod
    def _pace(rule: Rule, seconds: float) -> None:
        rule.over.wait(seconds)

    # Signing anew

    def _strip(self, request: Request, header: str) -> None:
        if request.header(header) is None:
            return
        request.headers = [(name, value) for name, value in request.headers if name.lower() != header.lower()]
        sign_again(request, self.gateway.secret_of)


def kind_of(method: str, key: str, query: dict[str, str]) -> str:
    """What a request is, in a word."""
    if method == "PUT" and "partNumber" in query:
        return "part"
    if method == "POST" and "uploads" in query:
        return "begin"
    if method == "POST" and "uploadId" in query:
        return "complete"
    if method == "DELETE" and "uploadId" in query:
        return "abort"
    if method == "GET" and not key:
        return "versions" if "versions" in query else "list" if "list-type" in query or "prefix" in query else "other"
    if method == "POST" and "delete" in query:
        return "delete"
    if not key or any(word in query for word in ("retention", "legal-hold", "tagging", "acl")):
        return "other"
    return {"PUT": "put", "GET": "get", "HEAD": "head", "DELETE": "delete"}.get(method, "other")


def read_head(stream: Any) -> Request | None:
    """The first line and the headers of a request; None at the end of the connection. Raises ValueError."""
    line = stream.readline(HEAD_LIMIT)
    if not line.endswith(b"\r\n"):
        return None
    method, target, _unused = line.decode("latin-1").split(" ", 2)
    headers = []
    while (line := stream.readline(HEAD_LIMIT)) != b"\r\n":
        if not line.endswith(b"\r\n"):
            return None
        name, _colon, value = line.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    path, _mark, text = target.partition("?")
    _empty, bucket, *rest = urllib.parse.unquote(path).split("/", 2) if path != "/" else ("", "", "")
    key = rest[0] if rest else ""
    query = dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
    return Request(method, target, headers, kind=kind_of(method, key, query), bucket=bucket, key=key)


def read_body(stream: Any, request: Request) -> bytes:
    """The body of a request, whole. Raises ValueError when the client stops before."""
    if (request.header("Transfer-Encoding") or "").lower() == "chunked":
        parts = []
        while size := int(stream.readline(64).split(b";")[0], 16):
            parts.append(stream.read(size))
            stream.readline(8)
        while stream.readline(HEAD_LIMIT) not in (b"\r\n", b""):
            pass
        return b"".join(parts)
    length = int(request.header("Content-Length") or 0)
    body: bytes = stream.read(length)
    if len(body) != length:
        raise ValueError("half a body")
    return body


AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+)/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+),"
)


def sign_again(request: Request, secret_of: Any) -> None:
    """Replace a request's signature (AWS4-HMAC-SHA256 in a header) by one for its headers as they are now."""
    found = AUTHORIZATION.match(request.header("Authorization") or "")
    if found is None:
        return
    access_key, day, region, names = found.groups()
    signed = [name for name in names.split(";") if request.header(name) is not None]
    path, _mark, text = request.target.partition("?")
    query = sorted(urllib.parse.parse_qsl(text, keep_blank_values=True))
    quoted = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in query)
    lines = [f"{name}:{' '.join((request.header(name) or '').split())}" for name in signed]
    body_digest = request.header("x-amz-content-sha256") or hashlib.sha256(request.body).hexdigest()
    canonical = "\n".join([request.method, path, quoted, *lines, "", ";".join(signed), body_digest])
    scope = f"{day}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", request.header("x-amz-date") or "", scope, digest])
    key = f"AWS4{secret_of(access_key)}".encode()
    for word in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    value = f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={';'.join(signed)}, Signature={signature}"
    request.headers = [(name, old) for name, old in request.headers if name.lower() != "authorization"]
    request.headers.append(("Authorization", value))


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")

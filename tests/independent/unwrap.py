# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opens a wrap by docs/repository-format.md alone, and shares no code with the engine: the keys for ``reader.py``."""

from __future__ import annotations

import base64
import hashlib
import sys
import unicodedata
from getpass import getpass
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def need(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def words_of(line: str, role: str) -> list[str]:
    body, check = line.rsplit(" ", 1)
    need(hashlib.sha256(body.encode()).hexdigest()[:8] == check, f"a damaged line {role}")
    words = body.split(" ")
    need(words[0] == f"cryo-{role}-1", f"this is no line {role}")
    return words[1:]


def unlocked(line: str, what: str, passphrase: str) -> tuple[list[str], list[str]]:
    """The words before the box of a line ``locked``, and the lines in it."""
    *words, box = words_of(line, "locked")
    need(words[0] == what, f"not locked as {what}")
    n, r, p = map(int, words[3].split(","))
    need(15 <= n <= 18 and r == 8 and 1 <= p <= 16, "impossible parameters")
    data = base64.b64decode(box, validate=True)
    secret = unicodedata.normalize("NFC", passphrase).encode()
    both = Scrypt(data[:32], 64, 2**n, r, p).derive(secret)
    need(both[32:] == data[32:64], "another passphrase")
    text = AESGCM(both[:32]).decrypt(bytes(12), data[64:], line[: line.index(box)].encode())
    return words, text.decode().splitlines()


def keys_in_wrap(path: Path, passphrase: str) -> list[str]:
    """The lines for ``catalog.key`` and ``data.identity``. ``path``: <location>/wraps/<recipient>/<wrap id>."""
    name = "/".join(path.parts[-3:]).encode()
    recipient, wrap, locked, proof = path.read_text().splitlines()
    owner, _public = words_of(recipient, "recipient")
    repository, epochs, sealed = words_of(wrap, "wrap")
    _what, (opener, anchor) = unlocked(locked, "opener", passphrase)
    opens, private = words_of(opener, "opener")
    need(opens == owner == path.parts[-2], "another recipient")
    raw = base64.b64decode(private)
    pair = (mlkem.MLKEM768PrivateKey.from_seed_bytes(raw[:64]), x25519.X25519PrivateKey.from_private_bytes(raw[64:]))
    place = bytes.fromhex(repository)
    info = b"cryobackup/1 wrap" + place + name
    keys = SUITE.decrypt(base64.b64decode(sealed), hpke.MLKEM768X25519PrivateKey(*pair), info).decode().splitlines()
    found = {}
    for line in keys:
        role = line.split("-")[1]
        of, epoch, key = words_of(line, role)
        need(of == repository, "a key of another repository")
        found[role, epoch] = base64.b64decode(key)
    numbers = epochs.split(",")
    expected = {(role, epoch) for role in ("catalog", "identity") for epoch in numbers}
    need(set(found) - {("digest", "1")} == expected, "other keys than announced")
    highest, lowest = numbers[-1], numbers[0]
    hkdf = HKDF(hashes.SHA256(), 32, found["catalog", highest], b"cryobackup/1 proof" + place)
    body = "".join(f"{line}\n" for line in (recipient, wrap, locked)).encode()
    tag = blake3(name + b"\n" + body, key=hkdf.derive(found["identity", highest])).digest()
    need(words_of(proof, "proof") == [repository, highest, base64.b64encode(tag).decode()], "a false wrap")
    identity = next(line for line in keys if line.startswith(f"cryo-identity-1 {repository} {lowest} "))
    known = hashlib.sha256(b"cryobackup/1 fingerprint" + identity.encode()).digest()
    need(words_of(anchor, "anchor") == [repository, lowest, base64.b64encode(known).decode()], "another repository")
    return keys


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in keys_in_wrap(Path(sys.argv[1]).absolute(), getpass())))

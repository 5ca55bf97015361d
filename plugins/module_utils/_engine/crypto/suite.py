# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Crypto suite 1 of docs/repository-format.md, section 5: nothing else in the engine encrypts."""

from __future__ import annotations

import os
import typing as t

from ..errors import DamageError

if t.TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey, Suite

    from ..storage.base import Buffer

SUITE = 1
KEY_BYTES = 32
TAG_BYTES = 16
SEALED_BYTES = 1168
_CONTEXT = b"cryobackup/1 "


def random_key() -> bytes:
    return os.urandom(KEY_BYTES)


def _hkdf(material: bytes, salt: bytes | None, purpose: bytes, *context: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = _CONTEXT + purpose + b"".join(context)
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(material)


def header_key(catalog_key: bytes, repository: bytes) -> bytes:
    return _hkdf(catalog_key, None, b"header", repository)


def digest_key(first_catalog_key: bytes, repository: bytes) -> bytes:
    return _hkdf(first_catalog_key, None, b"digest", repository)


def data_object_key(data_key: bytes, catalog_key: bytes, repository: bytes, name: bytes) -> bytes:
    return _hkdf(data_key, catalog_key, b"object", repository, name)


def catalog_object_key(catalog_key: bytes, salt: bytes, repository: bytes, name: bytes) -> bytes:
    return _hkdf(catalog_key, salt, b"object", repository, name)


def commitment(data_key: bytes, catalog_key: bytes, repository: bytes, name: bytes) -> bytes:
    return _hkdf(data_key, catalog_key, b"commit", repository, name)


def generate_identity() -> tuple[bytes, bytes]:
    """A new key pair: (identity, public key), in the encodings of the format."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    lattice = MLKEM768PrivateKey.generate()
    curve = X25519PrivateKey.generate()
    raw = serialization.Encoding.Raw
    identity = lattice.private_bytes_raw() + curve.private_bytes_raw()
    public = lattice.public_key().public_bytes(raw, serialization.PublicFormat.Raw)
    public += curve.public_key().public_bytes_raw()
    return identity, public


def public_of(identity: bytes) -> bytes:
    """The public key that belongs to an identity."""
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    lattice = MLKEM768PrivateKey.from_seed_bytes(identity[:64])
    curve = X25519PrivateKey.from_private_bytes(identity[64:])
    return lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()


def is_public_key(public: bytes) -> bool:
    """Whether something can be sealed to it."""
    try:
        wrap(b"", public, b"", b"")
    except ValueError:
        return False
    return True


def seal(data_key: bytes, public: bytes, repository: bytes, name: bytes) -> bytes:
    """The data key, so that only the identity opens it. About 100 µs."""
    return _hpke().encrypt(data_key, _public_key(public), _CONTEXT + b"seal" + repository + name)


def unseal(sealed: bytes, identity: bytes, repository: bytes, name: bytes) -> bytes:
    """Raises DamageError when this identity does not open it, or it is not what was sealed."""
    data_key = _hpke_open(sealed, identity, _CONTEXT + b"seal" + repository + name)
    if data_key is None:
        raise DamageError(
            f"object {name.decode()!r}: its key does not open with this identity",
            hint="Either the identity is of another key pair, or the object's header is damaged.",
        )
    return data_key


def wrap(keys: bytes, recipient: bytes, repository: bytes, name: bytes) -> bytes:
    """The secrets of epochs, so that only the recipient's opener opens them. ``name``: that of the wrap."""
    return _hpke().encrypt(keys, _public_key(recipient), _CONTEXT + b"wrap" + repository + name)


def unwrap(sealed: bytes, opener: bytes, repository: bytes, name: bytes) -> bytes | None:
    """None when this opener does not open it, or it is not what was wrapped."""
    return _hpke_open(sealed, opener, _CONTEXT + b"wrap" + repository + name)


def wrap_proof(identity: bytes, catalog_key: bytes, repository: bytes, text: bytes) -> bytes:
    """What only somebody who has the identity can say of a wrap, 32 bytes."""
    return keyed_digest(_hkdf(identity, catalog_key, b"proof", repository), text)


def passphrase_key(passphrase: bytes, salt: bytes, log_n: int, block: int, parallel: int) -> tuple[bytes, bytes]:
    """(key, commitment) by scrypt, 32 bytes each. Takes ``2 ** log_n * block * 128`` bytes of memory."""
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    both = Scrypt(salt=salt, length=2 * KEY_BYTES, n=1 << log_n, r=block, p=parallel).derive(passphrase)
    return both[:KEY_BYTES], both[KEY_BYTES:]


def lock(key: bytes, plain: bytes, associated: bytes) -> bytes:
    """AES-256-GCM under a key that encrypts nothing else."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key).encrypt(bytes(12), plain, associated)


def unlock(key: bytes, box: bytes, associated: bytes) -> bytes | None:
    """None when anything at all is not as it was locked."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(bytes(12), box, associated)
    except InvalidTag:
        return None


def _public_key(public: bytes) -> MLKEM768X25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey

    return MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(public[:1184]), X25519PublicKey.from_public_bytes(public[1184:])
    )


def _hpke_open(sealed: bytes, private: bytes, info: bytes) -> bytes | None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

    pair = MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])
    )
    try:
        return _hpke().decrypt(sealed, pair, info)
    except (InvalidTag, ValueError):
        return None


def _hpke() -> Suite:
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class FrameCipher:
    """AES-256-GCM with counter nonces under the key of one object. Thread-safe."""

    def __init__(self, object_key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._aead = AESGCM(object_key)

    @staticmethod
    def _nonce(kind: int, number: int) -> bytes:
        return bytes([kind]) + bytes(7) + number.to_bytes(4, "big")

    def encrypt(self, kind: int, number: int, data: Buffer, associated: bytes) -> bytes:
        return self._aead.encrypt(self._nonce(kind, number), data, associated)

    def decrypt(self, kind: int, number: int, data: Buffer, associated: bytes) -> bytes:
        """Raises cryptography's InvalidTag when anything at all is not as it was written."""
        return self._aead.decrypt(self._nonce(kind, number), data, associated)


def keyed_digest(key: bytes, data: Buffer) -> bytes:
    """BLAKE3 keyed, 32 bytes."""
    from blake3 import blake3

    return blake3(data, key=key).digest()


def equal(one: bytes, other: bytes) -> bool:
    import hmac

    return hmac.compare_digest(one, other)

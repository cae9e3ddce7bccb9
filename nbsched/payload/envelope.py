"""The signed envelope around everything that travels: nothing is read before it is checked.

Layout (big-endian), then the signature over all of it:

    magic 2s | version B | kind B | term Q | attempt I | first Q | count Q
    | key id 8s | digest of the body 32s
    | length-prefixed (B) namespace | length-prefixed (B) job
    | length-prefixed (I) meta | signature 32s

An envelope stands alone (in a NATS header, with the body beside it), so that the
leader checks and reads it without fetching the body; or in one piece with its body
(`seal` and `open_sealed`), for etcd values and control messages.

Signatures are HMAC-SHA256; SHA-256 is also the digest, as the fastest of the
standard library on processors that have instructions for it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from nbsched.errors import AuthenticationError, ConfigurationError

_MAGIC = b"NB"
_VERSION = 1
_FIXED = struct.Struct(">2sBBQIQQ8s32s")
_SIGNATURE_BYTES = 32
_LENGTH = struct.Struct(">I")
_NO_BODY = hashlib.sha256().digest()


class Kind(IntEnum):
    """What an envelope contains; a payload cannot be passed off as another kind."""

    INPUT = 1
    OUTCOME = 2
    COMMAND = 3
    ANSWER = 4
    REPORT = 5
    QUERY = 6


@dataclass(frozen=True)
class Key:
    """The secret that members of a cluster share."""

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) < 16:
            raise ConfigurationError(
                f"The cluster key has {len(self.secret)} bytes; at least 16 are needed. Make one:"
                " python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )

    @cached_property
    def id(self) -> str:
        """Eight characters that name the key and do not reveal it."""
        return hashlib.sha256(b"nbsched key id" + self.secret).hexdigest()[:8]

    @classmethod
    def generate(cls) -> Key:
        return cls(secrets.token_bytes(32))

    @classmethod
    def from_text(cls, text: str) -> Key:
        """Read the text of a key file."""
        return cls(text.strip().encode())

    def sign(self, data: bytes) -> bytes:
        return hmac.digest(self.secret, data, "sha256")


@dataclass(frozen=True)
class Envelope:
    """The checked content of an envelope; ``first`` and ``count`` are task indices."""

    kind: Kind
    namespace: str
    job: str = ""
    first: int = 0
    count: int = 0
    attempt: int = 0
    term: int = 0
    meta: bytes = b""
    digest: bytes = _NO_BODY


def write(key: Key, envelope: Envelope, body: bytes | memoryview = b"") -> bytes:
    """Return the signed envelope of ``body``, without the body."""
    digest = hashlib.sha256(body).digest() if len(body) else _NO_BODY
    namespace, job = envelope.namespace.encode(), envelope.job.encode()
    head = b"".join(
        (
            _FIXED.pack(
                _MAGIC,
                _VERSION,
                envelope.kind,
                envelope.term,
                envelope.attempt,
                envelope.first,
                envelope.count,
                key.id.encode(),
                digest,
            ),
            bytes((len(namespace),)),
            namespace,
            bytes((len(job),)),
            job,
            _LENGTH.pack(len(envelope.meta)),
            envelope.meta,
        )
    )
    return head + key.sign(head)


def read(key: Key, data: bytes, *, kind: Kind, namespace: str) -> Envelope:
    """Check an envelope and return its content. The body is checked by `check_body`.

    Raises:
        AuthenticationError: malformed, of another kind or namespace, or not signed
            with this key.
    """
    if len(data) < _FIXED.size + 6 + _SIGNATURE_BYTES:
        raise AuthenticationError("Bytes without a complete envelope arrived; they are ignored.")
    head, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
    fixed = _FIXED.unpack_from(head)
    magic, version, has_kind, term, attempt, first, count, key_id, digest = fixed
    if magic != _MAGIC or version != _VERSION:
        raise AuthenticationError(
            f"An envelope of format {magic!r}/{version} arrived, this is {_MAGIC!r}/{_VERSION}."
            " Install the same version of nbsched on clients and workers."
        )
    if not hmac.compare_digest(key_id, key.id.encode()):
        raise AuthenticationError(
            f"A payload is signed with key {key_id.decode(errors='replace')!r}, this process has"
            f" {key.id!r}. Give both sides the same key file (NBSCHED_KEY_FILE)."
        )
    if not hmac.compare_digest(signature, key.sign(head)):
        raise AuthenticationError("A payload's signature is wrong; it is ignored.")
    # Signed by a member, so the layout below can be trusted.
    at = _FIXED.size
    has_namespace, at = _take(head, at + 1, head[at])
    job, at = _take(head, at + 1, head[at])
    (meta_length,) = _LENGTH.unpack_from(head, at)
    meta = head[at + _LENGTH.size : at + _LENGTH.size + meta_length]
    if has_kind != kind or has_namespace.decode() != namespace:
        raise AuthenticationError(
            f"A payload of kind {has_kind} for namespace {has_namespace.decode()!r} arrived where"
            f" {kind.name} for {namespace!r} was expected; it is ignored."
        )
    return Envelope(
        kind=kind,
        namespace=namespace,
        job=job.decode(),
        first=first,
        count=count,
        attempt=attempt,
        term=term,
        meta=meta,
        digest=digest,
    )


def check_body(envelope: Envelope, body: bytes | memoryview) -> None:
    """Raise AuthenticationError unless ``body`` is what the envelope was signed for."""
    digest = hashlib.sha256(body).digest() if len(body) else _NO_BODY
    if not hmac.compare_digest(envelope.digest, digest):
        raise AuthenticationError("A payload does not match its signed digest; it is ignored.")


def seal(key: Key, envelope: Envelope, body: bytes) -> bytes:
    """Envelope and body in one piece."""
    head = write(key, envelope, body)
    return _LENGTH.pack(len(head)) + head + body


def open_sealed(
    key: Key, data: bytes, *, kind: Kind, namespace: str
) -> tuple[Envelope, memoryview]:
    """Check a sealed piece; returns its envelope and body. Raises AuthenticationError."""
    if len(data) < _LENGTH.size:
        raise AuthenticationError("Bytes without a complete envelope arrived; they are ignored.")
    (length,) = _LENGTH.unpack_from(data)
    head = bytes(data[_LENGTH.size : _LENGTH.size + length])
    body = memoryview(data)[_LENGTH.size + length :]
    envelope = read(key, head, kind=kind, namespace=namespace)
    check_body(envelope, body)
    return envelope, body


def to_header(data: bytes) -> str:
    """An envelope as the text of a NATS header."""
    return base64.b64encode(data).decode()


def from_header(text: str) -> bytes:
    """Undo `to_header`. Raises AuthenticationError when it is not one."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise AuthenticationError("A message without a readable envelope arrived.") from error


def _take(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    return data[at : at + length], at + length

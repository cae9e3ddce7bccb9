"""Messages in their signed envelopes, on the way out and in."""

from __future__ import annotations

from nbsched import messages
from nbsched.messages import AnyMessage
from nbsched.names import Names
from nbsched.payload import envelope
from nbsched.payload.envelope import Envelope, Key, Kind


class Wire:
    """Seals and opens the messages of one namespace with its key."""

    def __init__(self, key: Key, names: Names) -> None:
        self.key = key
        self.namespace = names.namespace

    def seal(self, kind: Kind, message: AnyMessage, term: int = 0) -> bytes:
        body = messages.encode(message)
        return envelope.seal(self.key, Envelope(kind, self.namespace, term=term), body)

    def open(self, kind: Kind, data: bytes) -> AnyMessage:
        """Check and decode. Raises AuthenticationError or ``msgspec.ValidationError``."""
        _, body = envelope.open_sealed(self.key, data, kind=kind, namespace=self.namespace)
        return messages.decode(body)

    def write(self, content: Envelope, body: bytes = b"") -> bytes:
        """The envelope of a log entry."""
        return envelope.write(self.key, content, body)

    def read(self, kind: Kind, header: bytes) -> Envelope:
        """Check the envelope of a log entry. Raises AuthenticationError."""
        return envelope.read(self.key, header, kind=kind, namespace=self.namespace)

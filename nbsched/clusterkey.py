"""The cluster's signing key: from a key file, or from etcd, made by whoever comes first."""

from __future__ import annotations

import base64
import time

import msgspec

from nbsched.errors import ConfigurationError
from nbsched.model import ClusterKey, to_json
from nbsched.names import Names
from nbsched.payload.envelope import Key
from nbsched.settings import Settings
from nbsched.storage import Absent, KeyValue, Put, Store


async def obtain(store: Store, names: Names, settings: Settings) -> Key:
    """The key file's key if one is set, else the namespace's key in etcd."""
    explicit = settings.explicit_key()
    if explicit is not None:
        return explicit
    stored = await store.get(names.cluster_key)
    if stored is None:
        await _store(store, names, Key.generate())
        stored = await store.get(names.cluster_key)
    if stored is None:
        raise ConfigurationError(
            f"The cluster key {names.cluster_key} was deleted while it was being read. Try again."
        )
    return _read(names, stored)


async def keep(store: Store, names: Names, settings: Settings, key: Key) -> None:
    """Put the key back that etcd has lost with its data, or new clients would make another.

    Raises ConfigurationError when one has: two keys are two clusters in one namespace.
    """
    if settings.key_file is not None or await _store(store, names, key):
        return
    stored = await store.get(names.cluster_key)
    if stored is not None and _read(names, stored).id != key.id:
        raise ConfigurationError(
            f"{names.namespace!r} has another cluster key than {key.id}, with which this process"
            " signs: etcd has lost its data, and somebody who came first has made a new one. Its"
            " jobs are gone. Start this process again; a key file (NBSCHED_KEY_FILE) outlives etcd."
        )


async def _store(store: Store, names: Names, key: Key) -> bool:
    """Store the key unless there is one; whether it was stored."""
    secret = base64.b64encode(key.secret).decode()
    record = ClusterKey(id=key.id, key=secret, created_at=time.time())
    put = Put(names.cluster_key, to_json(record))
    return (await store.commit([Absent(names.cluster_key)], [put])).succeeded


def _read(names: Names, stored: KeyValue) -> Key:
    try:
        record = msgspec.json.decode(stored.value, type=ClusterKey)
        return Key(base64.b64decode(record.key))
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigurationError(
            f"The cluster key in etcd ({names.cluster_key}) is damaged: {error}. Delete it while"
            " no worker runs; the next one makes a new key."
        ) from error

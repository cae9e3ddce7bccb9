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
from nbsched.storage import Absent, Put, Store


async def obtain(store: Store, names: Names, settings: Settings) -> Key:
    """The key file's key if one is set, else the namespace's key in etcd."""
    explicit = settings.explicit_key()
    if explicit is not None:
        return explicit
    stored = await store.get(names.cluster_key)
    if stored is None:
        fresh = Key.generate()
        record = ClusterKey(
            id=fresh.id, key=base64.b64encode(fresh.secret).decode(), created_at=time.time()
        )
        await store.commit([Absent(names.cluster_key)], [Put(names.cluster_key, to_json(record))])
        stored = await store.get(names.cluster_key)
    if stored is None:
        raise ConfigurationError(
            f"The cluster key {names.cluster_key} was deleted while it was being read. Try again."
        )
    try:
        record = msgspec.json.decode(stored.value, type=ClusterKey)
        return Key(base64.b64decode(record.key))
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigurationError(
            f"The cluster key in etcd ({names.cluster_key}) is damaged: {error}. Delete it while"
            " no worker runs; the next one makes a new key."
        ) from error

"""The one place that knows etcd keys, NATS subjects and stream names.

Everything of a cluster lies under its namespace, so that several can share the
same servers. Ids go into keys and subjects as they are, so they are checked here
and nowhere else.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass

from nbsched.errors import InvalidIdError
from nbsched.model import ClientId, JobId, RequestId, WorkerId

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def check_id(value: object, what: str) -> str:
    """Return ``value`` when it can stand in a key and a subject.

    Raises:
        InvalidIdError: with the characters that are allowed.
    """
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise InvalidIdError(
        f"{value!r} is not a {what}: use 1 to 64 letters, digits, '-' and '_', starting with a"
        f" letter or digit ('.', '*', '>' and '/' mean something to the servers)."
    )


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_job_id() -> JobId:
    """A readable id that sorts by time: ``20261124-061502-k7m2xq`` (UTC)."""
    return JobId(time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + _random(6))


def new_worker_id(host: str) -> WorkerId:
    """The host's name, made fit for a subject, and something random."""
    label = re.sub(r"[^A-Za-z0-9]+", "-", host.split(".")[0]).strip("-")[:40] or "host"
    return WorkerId(f"{label}-{_random(5)}")


def new_client_id() -> ClientId:
    return ClientId(f"c-{_random(8)}")


def new_request_id() -> RequestId:
    return RequestId(f"r-{_random(10)}")


@dataclass(frozen=True)
class Names:
    """Keys, subjects and streams of one namespace."""

    namespace: str

    def __post_init__(self) -> None:
        check_id(self.namespace, "namespace")

    # etcd keys
    @property
    def root(self) -> str:
        return f"/nbsched/{self.namespace}/"

    @property
    def cluster_key(self) -> str:
        return f"{self.root}key"

    @property
    def workers(self) -> str:
        return f"{self.root}workers/"

    def worker(self, worker: WorkerId) -> str:
        return f"{self.workers}{worker}"

    @property
    def candidates(self) -> str:
        return f"{self.root}leader/"

    def candidate(self, lease_id: int) -> str:
        return f"{self.candidates}{lease_id:016x}"

    @property
    def jobs(self) -> str:
        return f"{self.root}jobs/"

    def job(self, job: JobId) -> str:
        return f"{self.jobs}{job}"

    @property
    def inline_inputs(self) -> str:
        return f"{self.root}inputs/"

    def inline_input(self, job: JobId) -> str:
        return f"{self.inline_inputs}{job}"

    @property
    def statuses(self) -> str:
        return f"{self.root}status/"

    def status(self, job: JobId) -> str:
        return f"{self.statuses}{job}"

    @property
    def requests(self) -> str:
        return f"{self.root}requests/"

    def job_requests(self, job: JobId) -> str:
        return f"{self.requests}{job}/"

    def request(self, job: JobId, request: RequestId) -> str:
        return f"{self.job_requests(job)}{request}"

    @property
    def clients(self) -> str:
        return f"{self.root}clients/"

    def client(self, client: ClientId) -> str:
        return f"{self.clients}{client}"

    @property
    def forgotten_jobs(self) -> str:
        return f"{self.root}forgotten/"

    def forgotten_job(self, job: JobId) -> str:
        return f"{self.forgotten_jobs}{job}"

    # NATS streams
    @property
    def inputs_log(self) -> str:
        return f"nbsched-{self.namespace}-inputs"

    @property
    def results_log(self) -> str:
        return f"nbsched-{self.namespace}-results"

    # NATS subjects of the logs
    @property
    def all_inputs(self) -> str:
        return f"nbsched.{self.namespace}.inputs.>"

    def job_inputs(self, client: ClientId, job: JobId) -> str:
        return f"nbsched.{self.namespace}.inputs.{client}.{job}.>"

    def input_part(self, client: ClientId, job: JobId, block: int, part: int) -> str:
        """One message of a block; block 0 is the callable, items start at block 1."""
        return f"nbsched.{self.namespace}.inputs.{client}.{job}.{block}.{part}"

    @property
    def all_results(self) -> str:
        return f"nbsched.{self.namespace}.results.>"

    def client_results(self, client: ClientId) -> str:
        """Outcomes of all jobs of one client: it needs one reader, not one per job."""
        return f"nbsched.{self.namespace}.results.{client}.*"

    def job_results(self, client: ClientId, job: JobId) -> str:
        return f"nbsched.{self.namespace}.results.{client}.{job}"

    def owner_of(self, subject: str) -> tuple[ClientId, JobId] | None:
        """Whose job an entry of either log belongs to."""
        parts = subject.removeprefix(f"nbsched.{self.namespace}.").split(".")
        if parts[0] not in ("inputs", "results") or len(parts) < 3:
            return None
        return ClientId(parts[1]), JobId(parts[2])

    # NATS subjects of messages that are not kept
    def to_worker(self, worker: WorkerId) -> str:
        return f"nbsched.{self.namespace}.worker.{worker}"

    @property
    def reports(self) -> str:
        """Workers tell leader and clients here what they hold and run."""
        return f"nbsched.{self.namespace}.reports"

    def client_output(self, client: ClientId) -> str:
        """What running tasks print, of all jobs of one client."""
        return f"nbsched.{self.namespace}.output.{client}.*"

    def job_output(self, client: ClientId, job: JobId) -> str:
        return f"nbsched.{self.namespace}.output.{client}.{job}"

    @property
    def to_leader(self) -> str:
        """Clients ask the leader here for live counts."""
        return f"nbsched.{self.namespace}.leader"

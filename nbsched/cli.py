"""The ``nbsched`` command: this machine's cluster, and a look at any cluster.

Only options and output; what is done, is done elsewhere. What costs time to import
is imported by the command that needs it: ``nbsched --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

import click

import nbsched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbsched.client.cluster import Cluster
    from nbsched.client.records import JobInfo, WorkerInfo
    from nbsched.local.runtime import Runtime
    from nbsched.settings import Settings

_Command = TypeVar("_Command", bound=Callable[..., object])

_ENDED = ("succeeded", "failed", "cancelled", "incomplete")
_STATES = ("waiting", "running", *_ENDED)
_NOT_RUNNING = "No local cluster is running here. Start it: nbsched up"


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MOST_WEEKS = 5200
"""A century. So long before now there is a date, as there is none before the year 1."""


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A number with a unit: 90s, 30m, 12h, 7d, 2w."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> timedelta:
        if isinstance(value, timedelta):
            return value
        try:
            seconds = float(value[:-1]) * _SECONDS[value[-1:]]
        except (KeyError, ValueError):
            seconds = -1.0
        if seconds > _MOST_WEEKS * _SECONDS["w"]:
            self.fail(f"{value!r} is too long; write {_MOST_WEEKS}w or less.", param, ctx)
        if seconds >= 0:
            return timedelta(seconds=seconds)
        self.fail(f"{value!r} is no duration; write 90s, 30m, 12h or 7d.", param, ctx)


class _Commands(click.Group):
    """Shows errors of nbsched as a message, not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from nbsched.errors import NbschedError

        try:
            return super().invoke(ctx)
        except NbschedError as error:
            click.echo(f"nbsched: {error}", err=True)
            ctx.exit(1)


def _namespace_option(command: _Command) -> _Command:
    return click.option("--namespace", help="Which cluster.  [default: default]")(command)


def _server_options(command: _Command) -> _Command:
    command = _namespace_option(command)
    command = click.option("--nats", metavar="URL,…", help="NATS servers.")(command)
    return click.option("--etcd", metavar="HOST:PORT,…", help="etcd endpoints.")(command)


def _json_option(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@click.group(cls=_Commands, context_settings={"max_content_width": 100})
@click.version_option(nbsched.__version__, prog_name="nbsched")
def main() -> None:
    """Run functions on many machines, from a notebook.

    Without configured servers (--etcd, --nats, NBSCHED_ETCD, NBSCHED_NATS or the config
    file) commands are about this machine's own cluster.
    """


# ------------------------------------------------------------ this machine's cluster


@main.command()
@click.option("--cpus", type=click.IntRange(min=1), help="CPU slots.  [default: all]")
@_namespace_option
def up(cpus: int | None, namespace: str | None) -> None:
    """Start this machine's cluster in the background, unless it runs."""
    from nbsched.local import cluster
    from nbsched.settings import load

    settings = load({"namespace": namespace})
    before = cluster.shared_status(settings)
    _, membership = cluster.join_or_start(settings, cpus=cpus)
    with membership:
        record = cluster.shared_status(settings)
    if record is None:
        return
    if before is not None and before.pid == record.pid:
        click.echo("The local cluster is running already.")
        if cpus is not None and record.worker_cpus != (cpus,):
            click.echo(f"--cpus {cpus} takes effect after: nbsched down", err=True)
    else:
        click.echo("The local cluster is up.")
    _print_places(record)


@main.command()
@click.option("--purge", is_flag=True, help="Delete its data too: jobs, results, logs.")
@_namespace_option
def down(purge: bool, namespace: str | None) -> None:
    """Stop this machine's cluster. Its jobs go on when it is started again."""
    from nbsched.local import cluster
    from nbsched.settings import load

    settings = load({"namespace": namespace})
    unfinished = 0 if purge else _unfinished(settings)
    stopped = cluster.stop_shared(settings, purge=purge)
    click.echo("The local cluster has stopped." if stopped else "No local cluster was running.")
    if unfinished:
        jobs = "1 job is" if unfinished == 1 else f"{unfinished} jobs are"
        click.echo(f"{jobs} unfinished, to go on after: nbsched up")
    if purge:
        click.echo("Its data are deleted.")


# --------------------------------------------------------------------- any cluster


@main.command()
@_server_options
@_json_option
def status(as_json: bool, **servers: str | None) -> None:
    """Show servers, members and jobs. Exits with 1 when the local cluster is down."""
    from nbsched.local import cluster
    from nbsched.settings import load

    settings = load(servers)
    record = None if settings.connected else cluster.shared_status(settings)
    if record is None and not settings.connected:
        _print_json({"running": False}) if as_json else click.echo(_NOT_RUNNING)
        sys.exit(1)
    with _connected(servers) as connected:
        workers, jobs = connected.workers(), connected.jobs()
        settings = connected.settings
    if as_json:
        _print_json(_as_data(settings, record, workers, jobs))
        return
    if record is None:
        click.echo(f"Cluster {settings.namespace!r}")
        click.echo(f"  etcd  {', '.join(settings.etcd)}\n  nats  {', '.join(settings.nats)}")
    else:
        click.echo(f"Local cluster {record.namespace!r}, up {_since(record.started_at)}")
        _print_places(record)
    _print_workers(workers)
    counts = Counter(job.state for job in jobs)
    shown = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    click.echo(f"Jobs: {shown or 'none'}")
    _print_jobs([job for job in jobs if job.state not in _ENDED])


@main.command()
@click.option("--state", type=click.Choice(_STATES), multiple=True, help="Only in this state.")
@click.option("--tag", multiple=True, help="Only with this tag; patterns with * and ? may be.")
@click.option("--name", help="Only of this name; patterns with * and ? may be.")
@click.option("--limit", "-n", default=20, show_default=True, help="How many; 0 is all.")
@click.option("--prune", is_flag=True, help="Delete those that have ended, for good.")
@click.option(
    "--older-than",
    type=Duration(),
    help="With --prune: only what ended so long ago, e.g. 90s, 30m, 12h, 7d.",
)
@click.option("--all-ended", is_flag=True, help="With --prune: all that have ended.")
@_server_options
@_json_option
def jobs(
    state: tuple[str, ...],
    tag: tuple[str, ...],
    name: str | None,
    limit: int,
    prune: bool,
    older_than: timedelta | None,
    all_ended: bool,
    as_json: bool,
    **servers: str | None,
) -> None:
    """List jobs, newest first. Several --state or --tag mean any of them.

    With --prune, delete those that have ended instead: records, inputs and results.
    """
    if not prune and (older_than is not None or all_ended):
        raise click.UsageError("--older-than and --all-ended go with --prune.")
    if prune and not (older_than is not None or all_ended or state or tag or name):
        raise click.UsageError(
            "--prune deletes results for good. Say of which jobs: --older-than, --state, --tag,"
            " --name, or --all-ended."
        )
    with _connected(servers) as connected:
        found = connected.jobs(state=state or None, tag=tag or None, name=name)
        if prune:
            ended_by = datetime.now(timezone.utc) - (older_than or timedelta())
            _print_pruned(_prune(connected, found, ended_by), as_json)
            return
    shown = found[:limit] if limit > 0 else found
    if as_json:
        _print_json(shown)
        return
    _print_jobs(shown)
    if len(shown) < len(found):
        click.echo(f"{len(found) - len(shown)} older ones: nbsched jobs -n 0", err=True)
    if not found:
        such = " such" if state or tag or name else ""
        click.echo(f"There are no{such} jobs.", err=True)


@main.command()
@click.argument("job_id")
@_server_options
def cancel(job_id: str, **servers: str | None) -> None:
    """Stop every task of a job that has not ended."""
    with _connected(servers) as connected:
        state = next((job.state for job in connected.jobs() if job.id == job_id), None)
        # An id that is not in the list is refused by attach, with the reason.
        asked = state not in _ENDED and connected.attach(job_id).cancel()
    if asked:
        click.echo(f"Job {job_id} is being cancelled.")
    else:
        click.echo(f"Job {job_id} has ended already{f': {state}' if state else ''}.")


@main.command()
@click.option("--serial", is_flag=True, help="Run it in this process instead, by plain map().")
@click.option("--json", "as_json", is_flag=True, help="Print the totals alone, as JSON.")
def demo(serial: bool, as_json: bool) -> None:
    """Count what is in every module of Python's standard library.

    On the configured cluster, or else on a private one that ends with it.
    """
    from nbsched import demo as work

    work.run(serial=serial, as_json=as_json)


def _prune(connected: Cluster, found: Sequence[JobInfo], ended_by: datetime) -> list[str]:
    """Forget what had ended by then; returns the ids."""
    from nbsched.errors import JobNotEndedError, JobNotFoundError

    forgotten: list[str] = []
    for job in found:
        if job.state in _ENDED and job.ended is not None and job.ended <= ended_by:
            # Opened again, or forgotten by somebody else, since they were listed.
            with suppress(JobNotEndedError, JobNotFoundError):
                connected.forget(job.id)
                forgotten.append(job.id)
    return forgotten


def _print_pruned(forgotten: list[str], as_json: bool) -> None:
    if as_json:
        _print_json({"forgotten": forgotten})
    else:
        jobs = "1 job is" if len(forgotten) == 1 else f"{len(forgotten)} jobs are"
        click.echo(f"{jobs} forgotten.")


def _unfinished(settings: Settings) -> int:
    """Jobs of the local cluster that have not ended; 0 when it cannot say."""
    from nbsched.errors import NbschedError
    from nbsched.local import cluster, runtime

    record = cluster.shared_status(settings)
    if record is None:
        return 0
    from nbsched.client.cluster import Cluster

    try:
        place = runtime.to_settings(record, settings)
        with Cluster(**{name: getattr(place, name) for name in place.__struct_fields__}) as there:
            return sum(job.state not in _ENDED for job in there.jobs())
    except NbschedError:
        return 0  # it may be why it is being stopped


@contextmanager
def _connected(servers: dict[str, str | None]) -> Iterator[Cluster]:
    """The cluster that is meant, which must run: looking at one does not start it."""
    from nbsched.errors import LocalClusterError
    from nbsched.local.cluster import shared_status
    from nbsched.settings import load

    settings = load(servers)
    if not settings.connected and shared_status(settings) is None:
        raise LocalClusterError(_NOT_RUNNING)
    from nbsched.client.cluster import Cluster

    with Cluster(
        etcd=servers["etcd"], nats=servers["nats"], namespace=servers["namespace"]
    ) as connected:
        yield connected


# ------------------------------------------------------------------------- output


def _print_places(record: Runtime) -> None:
    rows = [["supervisor", record.folder, f"pid {record.pid}", ""]]
    where = {"etcd": record.etcd, "nats": record.nats}
    for part in record.parts:
        pid = f"pid {part.pid}" if part.pid else "starting"
        times = "once" if part.restarts == 1 else f"{part.restarts} times"
        restarts = f"restarted {times}" if part.restarts else ""
        rows.append([part.name, where.get(part.name, ""), pid, restarts])
    _print_table(rows)


def _print_workers(workers: Sequence[WorkerInfo]) -> None:
    cpus = sum(worker.cpus for worker in workers)
    click.echo(f"Members: {len(workers)} with {cpus} CPUs")
    _print_table(
        [
            [
                worker.id,
                worker.address,
                f"{worker.cpus} CPUs",
                f"pid {worker.pid}",
                f"Python {worker.python}",
                " ".join(
                    word
                    for word, holds in (("leader", worker.leader), ("draining", worker.draining))
                    if holds
                ),
            ]
            for worker in workers
        ]
    )


def _print_jobs(jobs: Sequence[JobInfo]) -> None:
    rows = []
    for job in jobs:
        done = job.ok + job.failed + job.cancelled
        total = "?" if job.total is None else f"{job.total:,}"
        bad = f"{job.failed:,} failed" if job.failed else ""
        rows.append([job.id, job.state, f"{done:,}/{total}", bad, job.name, job.note])
    _print_table(rows)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width)
        click.echo(f"  {'  '.join(cells)}".rstrip())


def _since(started_at: float) -> str:
    started = datetime.fromtimestamp(started_at, timezone.utc)
    return str(timedelta(seconds=(datetime.now(timezone.utc) - started) // timedelta(seconds=1)))


def _as_data(
    settings: Settings,
    record: Runtime | None,
    workers: Sequence[WorkerInfo],
    jobs: Sequence[JobInfo],
) -> dict[str, object]:
    data: dict[str, object] = {
        "running": True,
        "local": record is not None,
        "namespace": settings.namespace,
        "etcd": settings.etcd,
        "nats": settings.nats,
        "workers": workers,
        "jobs": jobs,
    }
    if record is not None:
        data["folder"] = record.folder
        data["pids"] = record.pids()
        data["parts"] = record.parts
    return data


def _print_json(data: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())


if __name__ == "__main__":
    main()

"""IPython magics: ``%load_ext nbsched``, then ``%%nbsched`` and ``%nbsched``.

Only the commands' options and words, and what passes between a cell and the notebook's
names; how a cell becomes a task is `nbsched.cells`' business. Imported by
``%load_ext`` alone: nothing else of nbsched needs IPython.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from nbsched.cells import Analysis, CellEnd, carrier
from nbsched.client.cluster import Cluster, latest
from nbsched.client.futures import Future
from nbsched.client.mapfuture import MapFuture
from nbsched.client.tables import JobTable, WorkerTable
from nbsched.errors import NbschedError
from nbsched.payload import pickling

_CODE = (FunctionType, BuiltinFunctionType, ModuleType, type)
"""What a cell needs of these comes along unasked: it is code, not data."""
_UNENDED = ("waiting", "running")


def load(shell: InteractiveShell) -> None:
    """Give a shell the magics."""
    shell.register_magics(ClusterMagics)


@magics_class
class ClusterMagics(Magics):
    """``%nbsched`` and ``%%nbsched``."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._ipython = shell
        self._own: Cluster | None = None
        """The cluster that had to be opened here, as the notebook has none."""

    # ------------------------------------------------------------ %%nbsched

    @magic_arguments(name="nbsched")
    @argument(
        "--in",
        dest="inputs",
        nargs="+",
        metavar="NAME",
        help="Variables that the cell gets: x,y. Default: those that it uses. Functions,"
        " classes and modules that it uses come along in any case.",
    )
    @argument(
        "--out",
        dest="outputs",
        nargs="+",
        metavar="NAME",
        help="Variables that the notebook gets from the cell: y,z. Default: none.",
    )
    @argument("--name", help="The job's name. Default: cell [n].")
    @argument("--cpus", type=int, default=1, help="CPU slots that the cell takes.")
    @argument("--timeout", type=float, metavar="S", help="Stop it after so many seconds.")
    @cell_magic("nbsched")  # type: ignore[arg-type]
    def run_cell(self, line: str, cell: str) -> Any:
        """Run this cell as one task on the cluster.

        It runs in a namespace of its own: it has the variables that --in names, and only
        those that --out names come back. The value of its last expression is shown, as
        always. While it runs its progress is shown, and an interrupt cancels it.

            %%nbsched --in x,y --out z --cpus 2
            z = fit(x, y)
        """
        options = parse_argstring(self.run_cell, line)
        inputs = None if options.inputs is None else _names(options.inputs, "--in")
        outputs = _names(options.outputs or (), "--out")
        number = self._ipython.execution_count
        source = "\n" + self._ipython.transform_cell(cell)  # line 1 is the magic's own
        filename = self._ipython.compile.cache(f"%%nbsched {line}\n{cell}", number)
        try:
            analysis = Analysis.of(source, filename)
        except SyntaxError as error:
            raise error.with_traceback(None)  # noqa: B904 - only the cell's line is of interest
        sent = self._sent(analysis, inputs, outputs)
        name = options.name or f"cell [{number}]"
        function = carrier(source, filename, self._ipython.user_ns, sent, outputs, name)
        mf = self._cluster().map(
            function, [None], name=name, cpus=options.cpus, task_timeout=options.timeout
        )
        try:
            (end,) = mf.result()
        except Exception as error:  # of interest is the remote traceback, not this one
            raise error.with_traceback(None) from error.__cause__
        finally:
            _show_printed(mf[0])
        return self._take_over(end)

    def _sent(
        self, cell: Analysis, inputs: tuple[str, ...] | None, outputs: tuple[str, ...]
    ) -> set[str]:
        """Names of the notebook that go along. Raises UsageError: nothing is sent yet."""
        there = self._ipython.user_ns
        _refuse_notebook_calls(cell, there)
        unknown = [name for name in inputs or () if name not in there]
        if unknown:
            raise UsageError(f"--in names {_listed(unknown)}, which the notebook does not have.")
        missing = cell.missing(there)
        if missing:
            raise UsageError(
                f"The cell uses {_listed(missing)}, which neither it nor the notebook defines."
            )
        used = {name for name in cell.needed if name in there}
        if inputs is not None:
            left_out = sorted(
                name for name in used - set(inputs) if not isinstance(there[name], _CODE)
            )
            # What the cell sets itself in some cases is its own, unless it is declared.
            undeclared = [name for name in left_out if name not in cell.stored]
            if undeclared:
                raise UsageError(f"The cell uses {_listed(undeclared)}: add to --in, or rename.")
            used = used.difference(left_out).union(inputs)
        never = [name for name in outputs if name not in cell.stored | used]
        if never and not cell.imports_all:
            raise UsageError(f"--out names {_listed(never)}, which the cell never sets.")
        return used

    def _take_over(self, end: CellEnd) -> Any:
        self._ipython.push(end.outputs)
        if end.instead:
            print(end.instead)
        return None if end.value is None else pickling.loads(end.value)

    # ------------------------------------------------------------ %nbsched

    @magic_arguments(name="nbsched")
    @argument(
        "what",
        nargs="?",
        default="status",
        choices=["status", "jobs", "workers", "cancel", "attach"],
        help="status: the cluster in short (default); jobs, workers: tables of them; cancel:"
        " stop a job; attach: a job's future again.",
    )
    @argument("job", nargs="?", help="The job's id, or a variable that holds its future.")
    @argument("--state", help="Only jobs in this state; several: failed,cancelled.")
    @argument("--tag", help="Only jobs with this tag.")
    @argument("-n", "--limit", type=int, default=20, help="So many jobs; 0: all. Default: 20.")
    @line_magic("nbsched")  # type: ignore[arg-type]
    def look(self, line: str) -> Any:
        """Look at the cluster and its jobs.

            %nbsched jobs --state failed
            %nbsched cancel 20260101-120000-a1b2c3

        The cluster is the variable `cluster` if there is one, else the one that was
        opened last, else this machine's own.
        """
        try:
            return self._look(parse_argstring(self.look, line))
        except NbschedError as error:
            raise UsageError(str(error)) from error

    def _look(self, options: Any) -> Any:
        if options.what in ("cancel", "attach"):
            if options.job is None:
                raise UsageError(f"Which job? %nbsched {options.what} ID; see %nbsched jobs")
            act = self._cancel if options.what == "cancel" else self._attach
            return act(self._job_id(options.job))
        if options.job is not None:
            raise UsageError(f"%nbsched {options.what} takes no {options.job!r}; see %nbsched?")
        match options.what:
            case "jobs":
                return self._jobs(options.state, options.tag, options.limit)
            case "workers":
                return self._cluster().workers()
        return self._status()

    def _status(self) -> None:
        cluster = self._cluster()
        jobs = cluster.jobs()
        counts = Counter(job.state for job in jobs)
        told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        print(f"{cluster!r}\nJobs: {told or 'none'}")
        for table in (cluster.workers(), jobs.filter(state=_UNENDED)):
            if table:
                _show(table)

    def _jobs(self, state: str | None, tag: str | None, limit: int) -> JobTable:
        states = None if state is None else _names([state], "--state")
        return self._cluster().jobs(state=states, tag=tag, limit=limit if limit > 0 else None)

    def _cancel(self, job: str) -> None:
        asked = self._attach(job).cancel()
        print(f"Job {job} is being cancelled." if asked else f"Job {job} has ended already.")

    def _attach(self, job: str) -> MapFuture | Future:
        return self._cluster().attach(job)

    def _job_id(self, text: str) -> str:
        held = self._ipython.user_ns.get(text)
        return held.job_id if isinstance(held, (MapFuture, Future)) else text

    # ------------------------------------------------------------ which cluster

    def _cluster(self) -> Cluster:
        named = self._ipython.user_ns.get("cluster")
        if isinstance(named, Cluster) and not named.closed:
            return named
        found = latest()
        if found is None:
            found = self._own = Cluster()
        return found


def _show(table: JobTable | WorkerTable) -> None:
    display(table)


def _refuse_notebook_calls(cell: Analysis, there: dict[str, Any]) -> None:
    if "get_ipython" in cell.needed:
        raise UsageError(
            "A task has no IPython: magics and !commands do not work in this cell. Run commands"
            " by subprocess.run(...), and use other magics in a cell of their own."
        )
    if "display" in cell.needed and "display" not in there:
        raise UsageError(
            "A task has no display(). Make the value the cell's last expression, or give it"
            " back with --out and display it in the next cell."
        )


def _names(words: Iterable[str], option: str) -> tuple[str, ...]:
    """``x,y``, ``x, y`` and ``x y`` are the same."""
    names = [name for word in words for name in word.split(",") if name]
    wrong = [name for name in names if not name.isidentifier()]
    if wrong:
        raise UsageError(f"{option} {wrong[0]!r} is no name of a variable.")
    return tuple(dict.fromkeys(names))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _show_printed(task: Future) -> None:
    """As if the cell had run here; also when it has failed."""
    for text, stream in ((task.stdout, sys.stdout), (task.stderr, sys.stderr)):
        if text:
            stream.write(text)
            stream.flush()

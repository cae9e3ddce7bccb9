"""Runs trials by name, or schedules by seed, several at a time, with a summary.

python -m chaos.run 7                          the schedule of a seed; a report as JSON
python -m chaos.run "the last outcome wins"    the story of a planted bug, or a rehearsal
python -m chaos.run --first 1 --count 300      many schedules, with a summary
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from chaos import schedule
from chaos.arena import REPOSITORY
from chaos.planted import BUGS, NONE
from chaos.rehearsals import REHEARSALS
from chaos.trial import FINISH_WITHIN_S, Report, Trial, at_times, run
from support.serverprocess import dying_with_us

HANG_WITHIN_S = 20.0
"""Instead of FINISH_WITHIN_S, where a hang is what a planted bug leads to."""
TRIES = 4
TRIAL_WITHIN_S = 400.0
YIELD = "5"
"""Many trials at once use all CPUs: tests beside them may look at how soon things happen."""


def find(name: str) -> Trial:
    """The trial of a seed, of a planted bug, or a rehearsal."""
    if name in REHEARSALS:
        return REHEARSALS[name]()
    if name == NONE or name in BUGS:
        return _planted(name)
    planned = schedule.make(int(name))
    ground = planned.ground
    act = at_times(planned.faults)
    return Trial(name, planned.jobs, act, clustered=ground.clustered, prepare=ground.prepare)


def _planted(name: str) -> Trial:
    bug = BUGS.get(name)
    if bug is None:
        return Trial(name, schedule.for_bug(0, ()).jobs, at_times(()), plant=name)
    planned = schedule.for_bug(0, bug.faults, bug.long)
    return Trial(
        name,
        planned.jobs,
        at_times(planned.faults),
        plant=name,
        finish_within_s=HANG_WITHIN_S if bug.hangs else FINISH_WITHIN_S,
        enough=bug.enough,
    )


def run_named(name: str) -> Report:
    """Run a trial; that of a planted bug again when the fault has hit where it did no harm."""
    report = run(find(name))
    for _ in range(TRIES - 1 if name in BUGS else 0):
        if any(BUGS[name].found_by in violation for violation in report.violations):
            break
        report = run(find(name))
    return report


def run_many(names: Iterable[str], at_once: int) -> Iterator[Report]:
    """Trials by name, in the order in which they end.

    Each in a process of its own, as servers die with the thread that started them.
    """
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        started = [pool.submit(_apart, name) for name in names]
        for each in concurrent.futures.as_completed(started):
            yield each.result()


def _apart(name: str) -> Report:
    try:
        done = subprocess.run(
            dying_with_us(["nice", "-n", YIELD, sys.executable, "-m", "chaos.run", name]),
            capture_output=True,
            text=True,
            timeout=TRIAL_WITHIN_S,
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
        )
        return Report(**json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        return Report(name, [f"the trial did not end within {TRIAL_WITHIN_S:.0f} s"])
    except ValueError:
        return Report(name, [f"the trial itself failed: {done.stderr[-3000:]}"])


def summary(reports: list[Report]) -> str:
    faults: Counter[str] = Counter()
    complaints: Counter[str] = Counter()
    for report in reports:
        faults.update(report.faults)
        complaints.update(report.complaints)
    finishes = sorted(report.finish_s for report in reports)
    bad = [report for report in reports if report.violations]
    lines = [
        f"schedules          {len(reports)}",
        f"faults             {sum(faults.values())}",
        *(f"  {kind:<16} {count}" for kind, count in sorted(faults.items())),
        f"tasks              {sum(report.tasks for report in reports)}",
        f"attempts repeated  {sum(report.repeats for report in reports)}",
        "from when everything ran again to the last outcome",
        f"  median {finishes[len(finishes) // 2]:.1f} s, worst {finishes[-1]:.1f} s",
        f"violations         {sum(len(r.violations) for r in bad)} in {len(bad)} schedules",
        *(f"  SEED={r.name}: {v}  [{r.folder}]" for r in bad for v in r.violations),
    ]
    for text, count in complaints.most_common(20):
        lines += [f"traceback in logs, {count} times", *(f"  {line}" for line in text.split("\n"))]
    return "\n".join(lines)


def _possible(seeds: Iterable[int]) -> Iterator[str]:
    for seed in seeds:
        why = schedule.make(seed).impossible
        if why:
            print(f"SEED={seed} is skipped: {why}", flush=True)
        else:
            yield str(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", help="a seed, a planted bug or a rehearsal")
    parser.add_argument("--first", type=int, default=1, help="the first seed of many")
    parser.add_argument("--count", type=int, default=20, help="how many seeds")
    parser.add_argument("--at-once", type=int, default=3)
    given = parser.parse_args()
    if given.name is not None:
        report = run_named(given.name)
        print(json.dumps(asdict(report), indent=2))
        sys.exit(bool(report.violations))
    reports = []
    for report in run_many(_possible(range(given.first, given.first + given.count)), given.at_once):
        reports.append(report)
        verdict = "; ".join(report.violations) or "ok"
        print(f"SEED={report.name} {report.took_s:.0f} s: {verdict}", flush=True)
    print(summary(reports))
    sys.exit(any(report.violations for report in reports))


if __name__ == "__main__":
    main()

"""Command line: play many seeds, or one and tell it.

    python -m support.sim 0:1000            # these seeds, on all CPUs
    python -m support.sim 17 --tell         # one, with its diary
    python -m support.sim 0:1000 --about "nats loses the tail"   # with faults of a kind
    python -m support.sim 0:1000 --bug NAME # with a planted bug; also several, one at a time

Run it with PYTHONHASHSEED=0 (it starts itself anew without): sets of ids have an order.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence

_TOGETHER = 50
"""Seeds that a process plays before it ends, with all the garbage that they have left."""

_YIELD = 5
"""Time is made up in stories, so they leave the CPUs to whoever looks at the real one."""

Play = Callable[[str, int], bool]
"""The story of a bug's theme and a seed: whether it ends well. No name is no bug."""


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "support.sim", *sys.argv[1:]])
    os.nice(_YIELD)
    from support.sim.clock import take_over

    take_over()
    from support.sim import run
    from support.sim.bugs import BUGS
    from support.sim.found import FOUND
    from support.sim.story import FAULTS, Theme, draw, theme_of

    parser = argparse.ArgumentParser(prog="python -m support.sim", description=__doc__)
    parser.add_argument("seeds", help="one, FIRST:LAST with LAST excluded, or found:NAME")
    parser.add_argument("--tell", action="store_true", help="print the diary")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a failure")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--about", choices=FAULTS, help="only faults of this kind, at least two")
    parser.add_argument("--bug", action="append", help="plant this one, in its own stories")
    parser.add_argument("--without", action="store_true", help="its stories, but not the bug")
    chosen = parser.parse_args()
    about = Theme(faults=(chosen.about,), least_faults=2) if chosen.about else None
    run.install()

    def plant(bug: str) -> None:
        if bug and not chosen.without:
            BUGS[bug].plant()

    def play(bug: str, seed: int) -> bool:
        theme = BUGS[bug].theme if bug else about or theme_of(seed)
        diary, wrong = run.play(draw(seed, theme))
        if chosen.tell:
            print("\n".join(event.line() for event in diary))
        if not wrong:
            return True
        print(f"{bug and bug + ', '}seed {seed}: " + "; ".join(wrong[:4]), flush=True)
        if not (chosen.no_shrink or chosen.keep_going):
            story = run.shrink(draw(seed, theme))
            diary, wrong = run.play(story)
            print("\n".join(["the shortest story found:", *story.lines(), *wrong]), flush=True)
        return False

    if chosen.seeds.startswith("found:"):
        diary, wrong = run.play(FOUND[chosen.seeds.removeprefix("found:")])
        print("\n".join([*(event.line() for event in diary), *wrong]))
        return 1 if wrong else 0
    bugs = chosen.bug or [""]
    first, _, last = chosen.seeds.partition(":")
    if not last:
        plant(bugs[0])
        return 0 if play(bugs[0], int(first)) else 1
    began = time.perf_counter()
    seeds = range(int(first), int(last))
    failed = _play_all(plant, play, bugs, seeds, chosen.processes, chosen.keep_going)
    used = os.times()
    for bug in bugs:
        print(f"{bug and bug + ': '}{len(seeds)} seeds, {'not ' * (bug in failed)}all fine")
    print(
        f"{time.perf_counter() - began:.1f} s,"
        f" {used.children_user + used.children_system:.1f} s of CPU",
        flush=True,
    )
    return 1 if failed else 0


def _play_all(
    plant: Callable[[str], None],
    play: Play,
    bugs: Sequence[str],
    seeds: Sequence[int],
    processes: int,
    keep_going: bool,
) -> set[str]:
    """Play all seeds with each bug, in processes that each take some of the seeds of one;
    those with which a story ended badly. No new process begins for them."""
    parts = [
        (bug, seeds[at : at + _TOGETHER]) for bug in bugs for at in range(0, len(seeds), _TOGETHER)
    ]
    running: dict[int, str] = {}
    failed: set[str] = set()
    while running or parts:
        if parts and len(running) < processes:
            bug, some = parts.pop(0)
            if bug not in failed or keep_going:
                running[_in_a_child(plant, play, bug, some, keep_going)] = bug
            continue
        ended, status = os.wait()
        bug = running.pop(ended)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, 1):
            raise SystemExit(f"a process that played stories ended with {code}")
        if code:
            failed.add(bug)
    return failed


def _in_a_child(
    plant: Callable[[str], None], play: Play, bug: str, seeds: Sequence[int], keep_going: bool
) -> int:
    """Returns its process id; it ends with status 1 when a story ends badly."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 2
    try:
        plant(bug)
        fine = True
        for seed in seeds:
            fine = play(bug, seed) and fine
            if not (fine or keep_going):
                break
        code = 0 if fine else 1
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())

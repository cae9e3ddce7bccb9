"""`IndexSet` against Python's own set."""

from __future__ import annotations

import random

from nbsched.indexset import IndexSet


def _indices(ranges: list[tuple[int, int]]) -> set[int]:
    return {index for start, stop in ranges for index in range(start, stop)}


def test_indexset_behaves_like_a_set_of_integers() -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(300):
        subject, model = IndexSet(), set[int]()
        for _ in range(40):
            start = rng.randrange(50)
            stop = start + rng.randrange(9)
            span = set(range(start, stop))
            if rng.random() < 0.6:
                assert subject.add(start, stop) == len(span - model)
                model |= span
            else:
                assert _indices(subject.remove(start, stop)) == span & model
                model -= span
            assert list(subject.indices()) == sorted(model)
            assert len(subject) == len(model)
            assert (start in subject) == (start in model)
            assert _indices(subject.intersection(start, stop)) == span & model
            assert _indices(subject.missing(start, stop)) == span - model
            count = rng.randrange(6)
            assert _indices(subject.tail(count)) == set(
                sorted(model)[len(model) - count :] if count <= len(model) else model
            )


def test_neighbouring_ranges_become_one() -> None:
    subject = IndexSet([(0, 5), (10, 15), (5, 10)])
    assert list(subject.ranges()) == [(0, 15)]


def test_take_first_takes_one_range_from_the_front() -> None:
    subject = IndexSet([(3, 5), (8, 20)])
    assert subject.take_first(10) == (3, 5)
    assert subject.take_first(4) == (8, 12)
    assert list(subject.ranges()) == [(12, 20)]
    assert IndexSet().take_first(1) is None


def test_ten_million_indices_are_one_range() -> None:
    subject = IndexSet([(0, 10_000_000)])
    subject.remove(5_000_000, 5_000_001)
    assert len(subject) == 9_999_999
    assert len(list(subject.ranges())) == 2

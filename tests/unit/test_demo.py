"""What the demo counts and prints, without a cluster."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import pytest

from nbsched import demo
from nbsched.demo import ModuleFacts


def write(folder: Path, source: str | bytes, name: str = "sample.py") -> str:
    path = folder / name
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return str(path)


@pytest.fixture
def few_modules(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The demo finds three modules only, so that a test is quick."""
    names = ["bisect.py", "json/__init__.py", "json/decoder.py"]
    monkeypatch.setattr(demo, "modules", lambda: names)
    return names


def test_analyse_counts_what_a_module_holds(tmp_path: Path) -> None:
    source = (
        "# a comment is no token\n"
        "class A:\n"
        "    def f(self):\n"
        "        return 1\n"
        "\n"
        "async def g():\n"
        "    x = 1\n"
        "    y = 2\n"
        "    return x + y\n"
    )

    facts = demo.analyse(write(tmp_path, source))

    assert (facts.lines, facts.functions, facts.classes) == (9, 2, 1)
    assert (facts.longest, facts.longest_lines) == ("g", 4)
    words = "class A : def f ( self ) : return 1 async def g ( ) : x = 1 y = 2 return x + y"
    assert facts.tokens == len(words.split(" "))
    assert facts.problem == ""


def test_nested_functions_count(tmp_path: Path) -> None:
    facts = demo.analyse(write(tmp_path, "def a():\n    def b():\n        pass\n"))

    assert (facts.functions, facts.longest, facts.longest_lines) == (2, "a", 3)


def test_an_empty_module_is_nothing_but_a_module(tmp_path: Path) -> None:
    facts = demo.analyse(write(tmp_path, ""))

    assert (facts.lines, facts.tokens, facts.functions, facts.longest) == (0, 0, 0, "")
    assert facts.problem == ""


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("print 'hello'\n", id="Python 2"),
        pytest.param("x = (\n", id="open bracket"),
        pytest.param(b"x = '\xff'\n", id="not UTF-8"),
        pytest.param("# coding: no-such-thing\nx = 1\n", id="unknown encoding"),
        pytest.param(b"x = 1\n\x00", id="null byte"),
        pytest.param("x = " + "-" * 20_000 + "1\n", id="nested too deep"),
        pytest.param("if x:\n        a\n    b\n", id="indentation"),
    ],
)
def test_a_file_that_is_no_python_is_counted_as_such(tmp_path: Path, source: str | bytes) -> None:
    facts = demo.analyse(write(tmp_path, source))

    assert facts.problem
    assert facts.lines > 0
    assert (facts.tokens, facts.functions) == (0, 0)
    assert demo.totals([facts]).unreadable == 1


def test_a_file_that_is_gone_is_counted_as_such(tmp_path: Path) -> None:
    assert "FileNotFoundError" in demo.analyse(str(tmp_path / "gone.py")).problem


def test_doubtful_escapes_raise_no_warning(tmp_path: Path) -> None:
    assert demo.analyse(write(tmp_path, 'x = "\\d"\n')).problem == ""


def test_modules_are_the_standard_library_sorted_without_installed_packages() -> None:
    found = demo.modules()

    assert found == sorted(found)
    assert {"bisect.py", "json/decoder.py"} <= set(found)
    assert not any("site-packages" in path or "__pycache__" in path for path in found)


def test_a_relative_path_is_one_of_the_standard_library() -> None:
    facts = demo.analyse("json/__init__.py")

    assert facts.module == "json"
    assert facts.functions > 3


def test_totals_do_not_depend_on_the_order() -> None:
    facts = [
        ModuleFacts(module=f"m{i:02}", tokens=i, longest="f", longest_lines=i // 4)
        for i in range(40)
    ]
    shuffled = list(facts)
    random.Random(7).shuffle(shuffled)

    assert demo.totals(facts) == demo.totals(shuffled)
    assert demo.totals(facts).longest == "m36:f"


def test_totals_of_nothing_are_zero() -> None:
    assert demo.totals([]).modules == 0


def test_the_table_ranks_by_tokens_and_ends_with_the_totals() -> None:
    facts = [ModuleFacts(module=f"m{i}", tokens=i * 1000, lines=1) for i in range(100)]

    lines = demo.report(facts).splitlines()

    assert lines[2].split()[:3] == ["1", "m99", "99,000"]
    assert lines[2 + demo.TOP - 1].split()[:2] == [str(demo.TOP), "m85"]
    assert "all 100 modules" in lines[2 + demo.TOP + 1]
    assert "4,950,000" in lines[2 + demo.TOP + 1]


def test_the_table_fits_80_columns_whatever_the_names() -> None:
    name = "package." * 20 + "module"
    facts = [
        ModuleFacts(
            module=name,
            lines=99_999,
            tokens=999_999,
            functions=9_999,
            classes=9_999,
            longest="function" * 20,
            longest_lines=9_999,
            problem="broken",
        )
    ] * 30

    assert max(map(len, demo.report(facts).splitlines())) <= demo.WIDTH


def test_numbers_stand_under_their_heading() -> None:
    facts = [ModuleFacts(module="m", tokens=1, lines=2, functions=3, classes=4, longest_lines=5)]

    head, _, row, *_ = demo.report(facts).splitlines()

    for heading, number in zip(head.split()[1:], row.split()[2:], strict=True):
        assert head.index(heading) + len(heading) == row.rindex(f" {number}") + 2


def test_the_serial_run_prints_the_table(
    few_modules: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    total = demo.run(serial=True, as_json=False)

    printed = capsys.readouterr()
    assert total.modules == len(few_modules)
    assert "json.decoder" in printed.out
    assert "in this process" in printed.err


def test_json_is_one_line_with_the_totals(
    few_modules: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    total = demo.run(serial=True, as_json=True)

    (line,) = capsys.readouterr().out.splitlines()
    assert msgspec.convert(json.loads(line), demo.Totals) == total


def test_an_interrupt_ends_with_a_sentence_and_status_130(
    few_modules: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(path: str) -> ModuleFacts:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "analyse", interrupted)

    with pytest.raises(SystemExit) as ended:
        demo.run(serial=True)

    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_terminal_without_unicode_gets_plain_rules(
    monkeypatch: pytest.MonkeyPatch, few_modules: list[str], tmp_path: Path
) -> None:
    with open(tmp_path / "out", "w", encoding="ascii") as out:
        monkeypatch.setattr("sys.stdout", out)
        demo.run(serial=True)

    assert "-----" in (tmp_path / "out").read_text()

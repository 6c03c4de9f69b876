"""Paired comparison of two predictions files, against hand-worked cases and a plain bootstrap."""

import json
from pathlib import Path

import numpy as np
import pytest

from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.evaluation.statistics.compare import compare, mcnemar
from pipeline.cli import main


def write(path: Path, values: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps({"item_id": item, "correct": value}) + "\n" for item, value in values.items()))
    return path


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (1, 8, 2 * (1 + 9) / 512),
        (8, 1, 2 * (1 + 9) / 512),
        (5, 5, 1.0),
        (0, 6, 2 / 64),
    ],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-12)


def test_hits_are_paired_by_question(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"1": 1.0, "2": 1.0, "3": 0.0, "4": 1.0})
    second = write(tmp_path / "b.jsonl", {"4": 0.0, "3": 0.0, "2": 1, "1": 0.0})
    result = compare(first, second)
    assert (result.n, result.first, result.second, result.difference) == (4, 75.0, 25.0, 50.0)
    assert (result.only_first, result.only_second, result.p) == (2, 0, 0.5)
    reverse = compare(second, first)
    assert (reverse.difference, reverse.only_first, reverse.low, reverse.high) == (-50.0, 0, -result.high, -result.low)


def test_the_interval_is_that_of_plain_paired_resampling(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    b = rng.random(80)
    a = np.clip(b + rng.normal(0.05, 0.1, 80), 0, 1)
    files = [
        write(tmp_path / f"{name}.jsonl", {str(i): float(v) for i, v in enumerate(values)})
        for name, values in (("a", a), ("b", b))
    ]
    result = compare(*files, bootstrap=Bootstrap(samples=8000))
    plain = [(a - b)[rng.integers(0, 80, 80)].mean() for _ in range(8000)]
    assert (result.low, result.high) == pytest.approx(tuple(100 * np.quantile(plain, (0.025, 0.975))), abs=0.2)
    assert result.p is None
    alone = 100 * 2 * 1.96 * np.sqrt(a.var() / 80 + b.var() / 80)
    assert result.high - result.low < alone / 2, "pairing takes out what is hard for both"


def test_files_that_do_not_match_are_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", {"1": 1.0, "2": 0.0})
    with pytest.raises(ValueError, match=r"short\.jsonl: 1 questions of the other file are not in it, such as 2"):
        compare(good, write(tmp_path / "short.jsonl", {"1": 1.0}))
    with pytest.raises(ValueError, match=r"good\.jsonl: 1 questions of the other file are not in it, such as 3"):
        compare(good, write(tmp_path / "long.jsonl", {"1": 1.0, "2": 0.0, "3": 0.0}))
    with pytest.raises(ValueError, match=r"wild\.jsonl: question 2: correct is 7; allowed are numbers from 0 to 1"):
        compare(good, write(tmp_path / "wild.jsonl", {"1": 1.0, "2": 7}))
    with pytest.raises(ValueError, match=r"empty\.jsonl: no predictions in it"):
        compare(good, write(tmp_path / "empty.jsonl", {}))
    twice = tmp_path / "twice.jsonl"
    twice.write_text(good.read_text() * 2)
    with pytest.raises(ValueError, match=r"twice\.jsonl: question 1 stands in it twice"):
        compare(good, twice)


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / name, {"1": value, "2": 1.0}) for name, value in (("a", 1.0), ("b", 0.0))]
    monkeypatch.setattr("sys.argv", ["perceptio", "compare", *map(str, files)])
    main()
    printed = capsys.readouterr().out
    assert "A 100.00, B 50.00, A - B +50.00" in printed
    assert "right in A alone 1, in B alone 0: p = 1 (McNemar, exact)" in printed
    monkeypatch.setattr("sys.argv", ["perceptio", "compare", str(files[0]), str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "absent: no such file" in capsys.readouterr().err

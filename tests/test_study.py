"""The study's rows: gathered from evaluations, merged over sessions, and put into the page, with nothing made up."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study.__main__ import main
from benchmarks.study.figure import picture
from benchmarks.study.rows import (
    CODES_IN,
    MODELS,
    REGIMES,
    VARIANTS,
    Row,
    Value,
    gather,
    identity,
    merge,
    read_rows,
    write_rows,
)
from benchmarks.study.tables import (
    NAMES,
    NOT_ASKED,
    NOT_RUN,
    TABLES,
    ablations,
    bars,
    codes,
    fill,
    first_turn,
    reading,
    regimes,
)
from perceptio_core.params.profile import load_profile
from perceptio_core.params.values import PROFILES

REPOSITORY = Path(__file__).resolve().parent.parent
PROFILE_FOLDER = REPOSITORY / PROFILES


def metric(name: str, value: float, *, half: float = 2.0) -> dict[str, Any]:
    return {"name": name, "value": value, "low": value - half, "high": value + half, "n": 600, "protocol": "fake"}


def evaluated(artifacts: Path, profile: str, variant: str, **values: float) -> None:
    folder = artifacts / profile / "evaluate" / variant
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps([metric(name, value) for name, value in values.items()]))


def row(variant: str, regime: str = "main", *, seed: int = 0, half: float = 2.0, **values: float) -> Row:
    metrics = [
        Value(**{key: value for key, value in metric(name, one, half=half).items() if key != "protocol"})
        for name, one in values.items()
    ]
    return Row(variant=variant, seed=seed, regime=regime, metrics=metrics)


def cells(table: str, first: str) -> list[str]:
    """The cells of the row that begins with `first`."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    (found,) = [line for line in lines if line[0] == first]
    return found[1:]


def test_an_evaluation_becomes_rows(tmp_path: Path) -> None:
    evaluated(
        tmp_path,
        "studio",
        "full_s2",
        res_ciou=66.0,
        hardblink_mean=61.0,
        codes_oracle_hardblink_mean=70.0,
        codes_zeroed_hardblink_mean=40.0,
        without_depth_hardblink_mean=50.0,
        new_scenes_hardblink_mean=44.0,
        new_scenes_ciou=30.0,
    )
    rows = {
        (one.variant, one.seed, one.regime): {m.name: m.value for m in one.metrics}
        for one in gather(tmp_path, profiles=PROFILE_FOLDER)
    }
    assert rows == {
        ("full", 2, "main"): {"res_ciou": 66.0, "hardblink_mean": 61.0, "without_depth_hardblink_mean": 50.0},
        ("codes_oracle", 2, "main"): {"hardblink_mean": 70.0},
        ("codes_zero", 2, "main"): {"hardblink_mean": 40.0},
        ("full", 2, "new_scenes"): {"hardblink_mean": 44.0, "res_ciou": 30.0},
    }


def test_regimes_and_other_codebooks_have_rows_of_their_own(tmp_path: Path) -> None:
    evaluated(tmp_path, "studio", "labels_100_control", hardblink_mean=35.0, new_scenes_hardblink_mean=30.0)
    evaluated(tmp_path, "studio", "more_points_full", hardblink_5=50.0)
    evaluated(tmp_path, "studio-k32", "full", hardblink_mean=60.0, codes_oracle_hardblink_mean=65.0)
    evaluated(tmp_path, "mini", "full", hardblink_mean=1.0)  # not of the study
    rows = [(one.variant, one.regime, [m.name for m in one.metrics]) for one in gather(tmp_path, profiles=PROFILE_FOLDER)]
    assert sorted(rows) == [
        ("control", "labels_100", ["hardblink_mean", "new_scenes_hardblink_mean"]),
        ("full", "more_points", ["hardblink_5"]),
        ("k32", "main", ["hardblink_mean", "codes_oracle_hardblink_mean"]),
    ]


@pytest.mark.parametrize("profile", ["studio", "studio-k32", "studio-k512", "studio-n25", "studio-n100"])
def test_every_variant_of_the_profiles_has_a_place(profile: str) -> None:
    for name in load_profile(profile, folder=PROFILE_FOLDER).variants:
        variant, regime = identity(profile, name)
        assert variant in MODELS
        assert regime in REGIMES


def test_every_place_of_the_study_has_a_variant() -> None:
    profiles = [path.stem for path in PROFILE_FOLDER.glob("studio*.yaml")]
    places = {identity(name, v) for name in profiles for v in load_profile(name, folder=PROFILE_FOLDER).variants}
    assert {variant for variant, regime in places if regime == "main"} == set(MODELS)
    assert {regime for _, regime in places} == set(REGIMES) - {"new_scenes"}  # those are tests of the main models


@pytest.mark.parametrize(("profile", "name"), [("studio", "fullest"), ("studio", "labels_7_full"), ("studio-k32", "control")])
def test_what_is_not_of_the_study_is_refused(profile: str, name: str) -> None:
    with pytest.raises(ValueError, match="the study has no variant"):
        identity(profile, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"name": "x"}]', r"metrics\.json: 'value'"),
        ("{", r"metrics\.json: "),
        ('[{"name": "x", "value": NaN, "low": null, "high": null, "n": 3}]', r"(?s)metrics\.json: .*x is not finite"),
    ],
)
def test_a_broken_evaluation_is_named(tmp_path: Path, content: str, message: str) -> None:
    folder = tmp_path / "studio" / "evaluate" / "full"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        gather(tmp_path, profiles=PROFILE_FOLDER)


def test_later_rows_replace_equal_ones_and_others_stay(tmp_path: Path) -> None:
    old = [row("control", hardblink_mean=1.0), row("full", hardblink_mean=2.0), row("full", seed=1, hardblink_mean=3.0)]
    new = [row("full", hardblink_mean=4.0), row("full", "labels_100", hardblink_mean=5.0)]
    merged = merge(old, new)
    assert [(one.variant, one.seed, one.regime, one.metrics[0].value) for one in merged] == [
        ("full", 0, "main", 4.0),
        ("full", 1, "main", 3.0),
        ("control", 0, "main", 1.0),
        ("full", 0, "labels_100", 5.0),
    ]
    file = tmp_path / "results" / "studio.json"
    write_rows(file, merged)
    assert read_rows(file) == merged
    assert set(json.loads(file.read_text())[0]) == {"variant", "seed", "regime", "metrics"}
    assert read_rows(tmp_path / "absent.json") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list of rows, got dict"),
        ('[{"variant": "best", "seed": 0, "regime": "main", "metrics": []}]', "row 0: .*'best'; allowed are full, no_depth"),
        ('[{"variant": "full", "seed": 0, "regime": "easy", "metrics": []}]', "row 0: .*'easy'; allowed are main, labels_100"),
        ('[{"variant": "full", "seed": "0", "regime": "main", "metrics": []}]', "row 0: seed: "),
    ],
)
def test_a_file_of_rows_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "studio.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"studio\.json: {message}"):
        read_rows(file)


def test_over_seeds_a_cell_is_the_mean_between_the_outermost_bounds() -> None:
    rows = [row("full", seed=seed, hardblink_mean=value, half=1.0) for seed, value in enumerate((60.0, 63.0, 57.0))]
    table = ablations([*rows, row("k32", hardblink_mean=50.0)])
    assert cells(table, "full")[4] == "60.0 (56.0 to 64.0)"
    assert cells(table, "full")[-1] == "3"
    assert cells(table, "K = 32") == [NOT_ASKED] * 4 + ["50.0 (48.0 to 52.0)"] + [NOT_ASKED] * 3 + ["1"]
    assert cells(table, "N = 25") == [NOT_RUN] * 8 + ["0"]


def test_codes_stand_beside_the_models_own() -> None:
    table = codes(
        [row("full", hardblink_mean=60.0, without_depth_hardblink_mean=55.0), row("codes_random", hardblink_mean=40.0)]
    )
    assert cells(table, "its own codes") == ["60.0 (58.0 to 62.0)"] + [NOT_RUN] * (len(CODES_IN) - 1)
    assert cells(table, "random codes")[0] == "40.0 (38.0 to 42.0)"
    assert cells(table, "code 0 everywhere")[0] == NOT_ASKED
    assert cells(table, "no depth span") == ["55.0 (53.0 to 57.0)"] + [NOT_RUN] * (len(CODES_IN) - 1)


def test_a_regime_is_told_with_the_difference_and_whether_it_is_more_than_the_intervals() -> None:
    rows = [
        row("full", "labels_100", hardblink_mean=50.0),
        row("control", "labels_100", hardblink_mean=38.0),
        row("full", "labels_1000", hardblink_mean=60.0),
        row("control", "labels_1000", hardblink_mean=57.0),
        row("full", "more_points", hardblink_5=40.0, hardblink_mean=99.0),
        row("full", "new_question_back", pairs_hardblink_mean=70.0),
        row("control", "new_question_back", pairs_hardblink_mean=75.0, hardblink_mean=58.0),
        row("full", hardblink_mean=61.0),
        row("full", "no_reading", hardblink_mean=59.0),
    ]
    table = regimes(rows)
    assert cells(table, "`labels_100`")[3:] == ["+12.0", "yes"]
    assert cells(table, "`labels_1000`")[3:] == ["+3.0", "no"]
    assert cells(table, "`more_points`")[1:] == ["40.0 (38.0 to 42.0)", NOT_RUN, NOT_RUN, NOT_RUN]
    assert cells(table, "`new_question_back`")[3:] == ["-5.0", "yes"]
    taught = reading(rows)
    assert cells(taught, "full") == ["61.0 (59.0 to 63.0)", "59.0 (57.0 to 61.0)"]
    assert cells(taught, "control: neither") == [NOT_RUN, "58.0 (56.0 to 60.0)"]


def test_what_stood_first_in_training_is_told_of_both_kinds_of_questions() -> None:
    table = first_turn(
        [
            row("full", hardblink_mean=61.0, pairs_hardblink_mean=54.0),
            row("full", "either_first", hardblink_mean=62.0, pairs_hardblink_mean=78.0),
            row("control", "either_first", hardblink_mean=63.0),
        ]
    )
    own = ["61.0 (59.0 to 63.0)", "62.0 (60.0 to 64.0)", "54.0 (52.0 to 56.0)", "78.0 (76.0 to 80.0)"]
    assert cells(table, "full") == own
    assert cells(table, "control: neither") == [NOT_RUN, "63.0 (61.0 to 65.0)", NOT_RUN, NOT_ASKED]


def test_the_bars_are_judged_by_the_rows_alone() -> None:
    labels = [
        row("full", "labels_100", hardblink_mean=50.0, half=1.0),
        row("control", "labels_100", hardblink_mean=40.0, half=1.0),
        row("full", "labels_10000", hardblink_mean=90.0),
        row("control", "labels_10000", hardblink_mean=50.0),
    ]
    order = [row(v, hardblink_mean=m) for v, m in (("codes_oracle", 70.0), ("full", 60.0), ("codes_random", 60.0))]
    names = [line.split(" | ")[0].strip("| ") for line in bars([]).splitlines()[2:]]
    beaten, read, masks = names
    assert [cells(bars([]), name)[0] for name in names] == [NOT_RUN] * 3
    table = bars([*labels, *order, row("full", seed=1, res_ciou=64.9)])
    assert cells(table, beaten) == ["yes", "largest difference +10.0 in `labels_100`, of 1 regimes run"]
    assert cells(table, read)[0] == "no"  # random codes are as good as its own
    assert cells(table, masks) == ["no", "64.9 (62.9 to 66.9)"]
    wide = [
        one.model_copy(update={"metrics": [row("full", hardblink_mean=m, half=6.0).metrics[0]]})
        for one, m in zip(labels, (50.0, 40.0), strict=False)
    ]
    assert cells(bars(wide), beaten)[0] == "no"  # ten points, but the intervals meet
    behind = [row("full", "labels_100", hardblink_mean=40.0), row("control", "labels_100", hardblink_mean=60.0)]
    assert cells(bars(behind), beaten)[0] == "no"  # apart, but the control is ahead
    assert cells(bars(labels[2:]), beaten)[0] == NOT_RUN  # labels_10000 does not count


def test_the_page_keeps_its_words_and_renews_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    marks = "".join(f"About {name}.\n<!-- study: {name} -->\nold\n<!-- end of study: {name} -->\n" for name in TABLES)
    page.write_text(f"# Results\n{marks}The end.\n")
    fill(page, [row("full", res_ciou=70.0)])
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Results\nAbout bars.\n<!-- study: bars -->\n| bar |")
    assert text.endswith("<!-- end of study: first turn -->\nThe end.\n")
    fill(page, [row("full", res_ciou=70.0)])
    assert page.read_text() == text
    page.write_text(text.replace("<!-- end of study: codes -->", ""))
    with pytest.raises(ValueError, match=r"results\.md: expected <!-- study: codes --> and, after it"):
        fill(page, [])
    with pytest.raises(ValueError, match="not found"):
        fill(tmp_path / "other.md", [])


def test_the_page_of_the_repository_is_of_its_rows(tmp_path: Path) -> None:
    """docs/results.md holds what docs/results/studio.json says, and no figure beside it."""
    copy = tmp_path / "results.md"
    copy.write_text((REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8"), encoding="utf-8")
    fill(copy, read_rows(REPOSITORY / "docs" / "results" / "studio.json"))
    assert copy.read_text(encoding="utf-8") == (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")


def test_the_picture_has_a_point_for_each_regime_that_was_run() -> None:
    rows = [
        *(row("full", "labels_100", seed=seed, hardblink_mean=value) for seed, value in enumerate((50.0, 58.0))),
        row("full", hardblink_mean=62.0),
        row("control", "labels_1000", hardblink_mean=55.0),
        row("no_token", hardblink_mean=10.0),
    ]
    (axes,) = picture(rows).axes
    lines = {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert {name: list(line.get_ydata()) for name, line in lines.items()} == {"full": [54.0, 62.0], NAMES["control"]: [55.0]}
    assert list(lines["full"].get_xdata()) == pytest.approx([100, 11_250], rel=0.05)


def test_names_and_variants_are_one_list() -> None:
    assert len(set(VARIANTS)) == len(VARIANTS)
    assert set(NAMES) == set(VARIANTS)


def test_the_command_gathers_merges_and_renews_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(PROFILE_FOLDER, tmp_path / "profiles")
    (tmp_path / "docs").mkdir()
    shutil.copy(REPOSITORY / "docs" / "results.md", tmp_path / "docs")
    evaluated(tmp_path / "artifacts", "studio", "full", res_ciou=66.0)
    write_rows(tmp_path / "elsewhere.json", [row("control", hardblink_mean=40.0), row("full", res_ciou=1.0)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", "--rows", "elsewhere.json"])
    main()
    assert "2 rows" in capsys.readouterr().out
    rows = read_rows(tmp_path / "docs" / "results" / "studio.json")
    assert [(one.variant, one.metrics[0].value) for one in rows] == [("full", 66.0), ("control", 40.0)]
    assert "66.0 (64.0 to 68.0)" in (tmp_path / "docs" / "results.md").read_text()
    assert (tmp_path / "docs" / "labels.png").stat().st_size > 5000
    monkeypatch.setattr(sys, "argv", ["study", "--rows", "absent.json"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert "absent.json: not found" in capsys.readouterr().err

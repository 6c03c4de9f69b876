"""Profiles: every mistake is refused with file, key and what is allowed."""

import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from pydantic import PositiveInt

from perceptio_core.params.base import Section, read_yaml
from perceptio_core.params.cotrain import TaskShare
from perceptio_core.params.profile import Profile, complete, load_profile
from perceptio_core.params.values import PROFILES, SECTIONS, read_values
from pipeline.settings import select, write_params

REPOSITORY = Path(__file__).resolve().parent.parent


class Inner(Section):
    rate: float = 1.0


class Example(Section):
    steps: PositiveInt
    sizes: tuple[int, ...] = ()
    inner: Inner = Inner()


def test_a_section_takes_exactly_the_types_it_names() -> None:
    section = Example.from_mapping({"steps": 3, "sizes": [1, 2], "inner": {"rate": 2}}, where="here")
    assert (section.steps, section.sizes, section.inner.rate) == (3, (1, 2), 2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "3"}, r"p: s\.steps: .*integer, got '3'"),
        ({"steps": True}, r"p: s\.steps: .*integer, got True"),
        ({"steps": 0}, r"p: s\.steps: .*greater than 0, got 0"),
        ({}, r"p: s\.steps: missing"),
        ({"steps": 1, "step": 2}, r"p: s\.step: unknown key; allowed are steps, sizes, inner"),
        ({"steps": 1, "inner": {"rates": 1.0}}, r"p: s\.inner\.rates: unknown key"),
        ([1], r"p: s: "),
    ],
)
def test_a_mistake_is_refused_with_its_place(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Example.from_mapping(values, where="p: s")


def test_a_section_cannot_be_changed() -> None:
    section = Example(steps=1)
    with pytest.raises(ValueError, match="frozen"):
        section.steps = 2  # type: ignore[misc]


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("a: 1e-4\nb: 1.5E+3\nc: 2e5\nd: v1e3\n")
    assert read_yaml(file) == {"a": 1e-4, "b": 1500.0, "c": 2e5, "d": "v1e3"}


@pytest.mark.parametrize(("text", "message"), [("a: 1\na: 2\n", "twice"), ("- 1\n", "mapping"), ("a: [1\n", r"p\.yaml")])
def test_a_file_that_is_no_clear_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_yaml(file)


def profiles() -> list[str]:
    return sorted(file.stem for file in (REPOSITORY / PROFILES).glob("*.yaml"))


@pytest.mark.parametrize("name", profiles())
def test_every_profile_is_valid_and_has_the_full_model(name: str) -> None:
    profile = load_profile(name, folder=REPOSITORY / PROFILES)
    assert profile.variant("full") == profile.cotrain
    with pytest.raises(ValueError, match=r"variants has no 'nonesuch'; allowed are full"):
        profile.variant("nonesuch")


def test_the_profiles_that_the_readme_names_exist() -> None:
    assert {"mini", "smoke", "realdata"} <= set(profiles())


def test_variants_override_single_keys() -> None:
    profile = load_profile("mini", folder=REPOSITORY / PROFILES)
    control = profile.variant("control")
    assert profile.cotrain.spans.depth
    assert not control.spans.depth
    assert control.steps == profile.cotrain.steps


@pytest.mark.parametrize(
    ("name", "changes", "codes"),
    [
        ("studio-k32", {"num_codes": 32}, 64),
        ("studio-k512", {"num_codes": 512}, 64),
        ("studio-n25", {"resolution": 80, "widths": (16, 32, 64, 64)}, 25),
        ("studio-n100", {"resolution": 80}, 100),
    ],
)
def test_the_other_codebooks_of_the_study_differ_in_nothing_else(name: str, changes: dict[str, object], codes: int) -> None:
    studio, other = (load_profile(profile, folder=REPOSITORY / PROFILES) for profile in ("studio", name))
    assert studio.depth_codebook.model_copy(update=changes) == other.depth_codebook
    assert (other.depth_codebook.resolution // 2 ** len(other.depth_codebook.widths)) ** 2 == codes
    for section in set(SECTIONS) - {"depth_codebook"}:
        assert getattr(other, section) == getattr(studio, section), section
    assert list(other.variants) == ["full"]


def test_the_study_varies_one_thing_at_a_time() -> None:
    """Each variant of profile studio, its seed apart, is the full model or the control with the change that its name says."""
    studio = load_profile("studio", folder=REPOSITORY / PROFILES)
    full, control = studio.variant("full"), studio.variant("control")
    assert not control.spans.depth
    assert not control.spans.segmentation
    fields = set(type(full).model_fields)

    def changed(name: str, base: str) -> set[str]:
        variant, other = studio.variant(name), studio.variant(base)
        return {field for field in fields if getattr(variant, field) != getattr(other, field)}

    assert changed("control", "full") == {"spans", "mixture"}
    assert changed("no_seg", "full") == {"spans"}
    assert changed("no_depth", "full") == {"spans", "mixture"}
    assert changed("depth_first", "full") == {"order"}
    assert changed("no_code_words", "full") == {"code_words"}
    assert changed("no_own_codes", "full") == {"own_codes"}
    for loss in ("marker", "token", "count", "reconstruction"):
        assert changed(f"no_{loss}", "full") == {"loss_weights"}
        assert getattr(studio.variant(f"no_{loss}").loss_weights, loss) == 0
    for base in ("full", "no_depth", "no_seg", "control"):
        assert [changed(f"{base}_s{seed}", base) for seed in (1, 2)] == [{"seed"}] * 2
        assert [studio.variant(f"{base}_s{seed}").seed for seed in (1, 2)] == [1, 2]
    for regime in ("labels_100", "labels_1000", "labels_10000", "more_points", "new_question", "new_question_back"):
        for base in ("full", "control"):
            # With 100 pictures the mixture draws them less often: each would be seen a hundred times.
            assert changed(f"{regime}_{base}", base) == {"markers"} | ({"mixture"} if regime == "labels_100" else set())
        assert changed(f"{regime}_control", f"{regime}_full") == {"spans", "mixture"}
    few = studio.variant("labels_100_full").mixture
    assert studio.variant("labels_100_control").mixture == few.model_copy(
        update=dict.fromkeys(("depth_map", "reading"), TaskShare(weight=0.0))
    )
    assert changed("labels_100_equal_full", "labels_100_full") == {"mixture"}
    assert changed("labels_100_equal_control", "labels_100_equal_full") == {"spans", "mixture"}
    for base in ("full", "control"):
        weights = studio.variant(f"labels_100_equal_{base}").mixture.weights
        assert weights["reading"] == 0
        assert weights["marker"] / sum(weights.values()) == pytest.approx(0.1)  # of as many samples: as many draws
    for base in ("full", "control"):
        assert changed(f"longer_{base}", base) == {"steps"}
        assert [changed(f"labels_100_{base}_s{seed}", f"labels_100_{base}") for seed in (1, 2)] == [{"seed"}] * 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("\nreport:", "\nreports:", r"unknown sections \['reports'\]; allowed are"),
        ("\nvariants:\n  full: {}", "\nvariants:\n  full: {stepps: 1}", r"variants\.full\.stepps: unknown key; allowed are"),
        ("\nvariants:\n  full: {}", "\nvariants:\n  full: 3", r"variants\.full: expected a mapping"),
        ("\nseed: 0", "\nseed: -1", r"seed: expected a whole number from 0 on, got -1"),
        (
            "\nseed: 0",
            "\nactive: [fool]",
            r"active: expected a list of names under variants \(full, .*control\), got \['fool'\]",
        ),
        ("\nseed: 0", "\nextends: nonesuch", r"there is no profile .*nonesuch\.yaml; profiles here: mine"),
        ("\nseed: 0", "\nextends: mine", r"mine\.yaml: extends itself"),
        ("\nseed: 0", "\nextends: [mine]", r"extends: expected the name of a profile"),
    ],
)
def test_a_mistake_anywhere_in_a_profile_is_found(tmp_path: Path, before: str, after: str, message: str) -> None:
    text = (REPOSITORY / PROFILES / "mini.yaml").read_text()
    assert before in text
    (tmp_path / "mine.yaml").write_text(text.replace(before, after))
    with pytest.raises(ValueError, match=message):
        load_profile("mine", folder=tmp_path)


def test_a_profile_says_what_differs_from_the_one_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text((REPOSITORY / PROFILES / "mini.yaml").read_text())
    (tmp_path / "middle.yaml").write_text("extends: base\nseed: 7\ncotrain: {steps: 5, lora: {r: 4}, code_words: []}\n")
    (tmp_path / "mine.yaml").write_text(
        "extends: middle\nactive: [small]\nsources: {render: null, root: $HERE}\nvariants: {small: {lora: {r: 2}, seed: 1}}\n"
    )
    base, mine = (load_profile(name, folder=tmp_path) for name in ("base", "mine"))
    cotrain = base.cotrain.model_copy(
        update={"steps": 5, "lora": base.cotrain.lora.model_copy(update={"r": 4}), "code_words": (), "seed": 7}
    )
    assert mine.cotrain == cotrain
    assert list(mine.variants) == ["small"], "its variants are all that there are"
    small = cotrain.model_copy(update={"lora": cotrain.lora.model_copy(update={"r": 2}), "seed": 1})
    assert mine.variant("small") == small
    assert mine.sources.render is None
    assert mine.evaluate == base.evaluate.model_copy(update={"seed": 7}), "one seed for all"
    assert mine.report == base.report


def test_the_profiles_are_short() -> None:
    assert sum(len((REPOSITORY / PROFILES / f"{name}.yaml").read_text().splitlines()) for name in profiles()) < 500


@pytest.mark.parametrize("name", profiles())
def test_the_complete_set_has_every_key_and_means_the_same(name: str, tmp_path: Path) -> None:
    values = read_values(REPOSITORY / PROFILES / f"{name}.yaml")
    write_params(complete(values), tmp_path / "params.yaml")
    written = read_values(tmp_path / "params.yaml")
    assert Profile.of(written) == Profile.of(values)
    for section in SECTIONS:
        assert written.plain[section].keys() | {"seed"} >= set(type(getattr(Profile.of(values), section)).model_fields), section


def test_what_is_kept_in_git_is_the_default_profile() -> None:
    kept = read_values(REPOSITORY / "params.yaml")
    assert (kept.profile, kept.plain) == ("mini", complete(read_values(REPOSITORY / PROFILES / "mini.yaml")).plain)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The profiles and params.yaml of this repository, in a folder to work in; returns that params.yaml."""
    (tmp_path / "profiles").symlink_to(REPOSITORY / PROFILES)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(REPOSITORY / "params.yaml", tmp_path))


def test_all_stands_for_every_variant_of_the_profile(checkout: Path) -> None:
    before = checkout.read_text()
    assert select(profile="smoke", variants=["all"]).active == ("full", "control")
    assert "\nprofile: smoke\n" in checkout.read_text()
    assert select().active == ("full", "control")
    assert select(profile="smoke").active == ("full", "control"), "the same profile anew"
    assert select(profile="mini").active == ("full",), "smoke's control is not asked of another profile"
    assert checkout.read_text() == before
    with pytest.raises(ValueError, match="active: control; full must be among them"):
        select(profile="smoke", variants=["control"])
    assert checkout.read_text() == before


def test_what_is_written_is_said_and_nothing_is_written_unasked(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select()
    assert capsys.readouterr().out == ""
    changes = ["cotrain.steps=20", "sources.render.train=9", "variants.control.clip=2.0"]
    chosen = select(variants=["full", "control"], changes=changes)
    assert (chosen.cotrain.steps, chosen.variant("control").clip, chosen.sources.render.train) == (20, 2.0, 9)  # type: ignore[union-attr]
    assert capsys.readouterr().out == (
        "params.yaml is written anew: active: ['full'] -> ['full', 'control']; sources.render.train: 6000 -> 9; "
        "cotrain.steps: 900 -> 20; variants.control.clip: None -> 2.0\n"
    )
    assert load_profile().cotrain.steps == 20
    text = "# mine\n" + checkout.read_text()
    checkout.write_text(text)
    assert select().cotrain.steps == 20
    assert checkout.read_text() == text
    said = capsys.readouterr().out
    assert said.startswith("params.yaml differs from the profile mini, whose values --profile mini would take:\n")
    assert "  cotrain.steps: 900 -> 20\n" in said
    assert select(profile="mini").cotrain.steps == 900
    assert "cotrain.steps: 20 -> 900" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cotrain.steps", "--set cotrain.steps: expected KEY=VALUE, as in cotrain.steps=20"),
        (
            "cotrain.stepps=1",
            r"--set cotrain.stepps=1: there is no cotrain.stepps, did you mean 'steps'\? allowed there are ",
        ),
        ("cotrain.steps.more=1", "--set cotrain.steps.more=1: expected KEY=VALUE"),
        ("cotrain.steps=many", "cotrain.steps: .*integer, got 'many'"),
        ("cotrain.mixture=[", "--set cotrain.mixture: .*"),
        ("variants.control.stepps=1", r"variants\.control\.stepps: unknown key"),
    ],
)
def test_a_value_that_cannot_be_set_is_refused_and_nothing_is_written(checkout: Path, change: str, message: str) -> None:
    before = checkout.read_text()
    with pytest.raises(ValueError, match=message):
        select(changes=["cotrain.batch_size=48", change])
    assert checkout.read_text() == before


def test_dvc_sets_what_params_yaml_holds(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a value names an environment variable, too: DVC's own `-S` must not take it for an interpolation of its own."""
    monkeypatch.setenv("PERCEPTIO_DATA", "unused")
    select(profile="perceptio-1b")
    apply_overrides(str(checkout), ["cotrain.steps=20", "cotrain.own_codes=0.5"])
    assert (load_profile().cotrain.steps, load_profile().cotrain.own_codes) == (20, 0.5)
    assert load_profile().sources.root == "$PERCEPTIO_DATA"


def test_an_unknown_profile_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"no profile .*nonesuch\.yaml; profiles here: .*mini"):
        load_profile("nonesuch", folder=REPOSITORY / PROFILES)


def test_the_sections_are_the_stages_of_the_pipeline() -> None:
    assert tuple(read_yaml(REPOSITORY / "dvc.yaml")["stages"]) == ("code", *SECTIONS)

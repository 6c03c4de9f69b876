"""The report: figures gathered, tables, tokens, pictures, lock file, and the page of a fake run."""

import json
import re
import subprocess
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import report_fake as fake
from perceptio_core.report.figures import Figure, gather, read_figures, write_figures
from perceptio_core.report.page import page
from perceptio_core.report.panels import tokens_html
from perceptio_core.report.pictures import PREDICTED, TRUE, depth_picture, overlay, shrink
from perceptio_core.report.plots import smooth, usage_plot
from perceptio_core.report.provenance import git_state, read_lock
from perceptio_core.report.published import read_published
from perceptio_core.report.readme_figure import readme_figure
from perceptio_core.report.tables import headline_table, number, tiles


def written(path: Path, figures: list[Figure]) -> Path:
    path.write_text(json.dumps([asdict(figure) for figure in figures]))
    return path


@pytest.mark.parametrize("order", [("full", "control"), ("control", "full")])
def test_figures_of_other_variants_than_full_carry_their_names(order: tuple[str, ...], tmp_path: Path) -> None:
    codebook = written(tmp_path / "codebook.json", [fake.figure("codebook_usage", 98.0)])
    full = written(tmp_path / "full.json", [fake.figure("mmbench", 60.0), fake.figure("res_ciou", 55.0)])
    control = written(tmp_path / "control.json", [fake.figure("mmbench", 61.0)])
    files = {"full": full, "control": control}
    figures = gather(codebook=codebook, evaluations={name: files[name] for name in order})
    values = {figure.name: figure.value for figure in figures}
    assert values == {"codebook_usage": 98.0, "mmbench": 60.0, "res_ciou": 55.0, "control_mmbench": 61.0}
    write_figures(figures=figures, folder=tmp_path)
    assert read_figures(tmp_path / "metrics.json") == figures
    assert json.loads((tmp_path / "summary.json").read_text()) == values


def test_figures_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"mmbench": 3}')
    with pytest.raises(ValueError, match=r"metrics\.json: expected a list of metrics, got dict"):
        read_figures(path)
    path.write_text('[{"name": "mmbench", "value": 3}]')
    with pytest.raises(ValueError, match=r"metrics\.json: metric 0: expected an object with the keys"):
        read_figures(path)
    written(path, [replace(fake.figure("mmbench", 1.0), value=float("nan"))])
    with pytest.raises(ValueError, match=r"metric 0 \(mmbench\): value must be a finite number"):
        read_figures(path)
    written(path, [fake.figure("mmbench", 1.0)])
    with pytest.raises(ValueError, match="metrics measured twice: mmbench"):
        gather(codebook=path, evaluations={"full": path})


def test_published_figures_are_those_of_the_papers(tmp_path: Path) -> None:
    published = read_published(fake.PUBLISHED)
    ours = {model.name: model for model in published.models}
    perceptio = ours["Perceptio-8B"]
    assert published.value(model=perceptio, metric="res_ciou") == 82.7
    assert published.value(model=perceptio, metric="unparsed") is None
    for model in published.models:  # the published means are the means of the published subsets, as far as rounding goes
        subsets = [model.figures.get(f"hardblink_{n}") for n in (3, 4, 5)]
        if None not in subsets and "hardblink_mean" in model.figures:
            assert model.figures["hardblink_mean"] == pytest.approx(np.mean(subsets), abs=0.11), model.name
    content = json.loads(fake.PUBLISHED.read_text())
    content["models"][0]["figures"]["vqa"] = 1
    (tmp_path / "published.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"Perceptio-8B has figures for \['vqa'\]"):
        read_published(tmp_path / "published.json")


def test_headline_table_puts_control_and_published_beside() -> None:
    table = headline_table(figures=fake.figures(), control="control", published=read_published(fake.PUBLISHED))
    rows = {match[1]: match[0] for match in re.finditer(r'<tr[^>]*><th title="(\w+)">.*?</tr>', table)}
    cells = [re.sub(r"<[^>]*>", " ", cell).split() for cell in re.findall(r"<td.*?</td>", rows["hardblink_mean"])]
    assert cells == [["71.8", "68.8", "–", "74.8"], ["66.0", "63.0", "–", "69.0"], [], ["124"], ["71.0"], ["–"], ["60.7"]]
    assert 'class="baseline"' in rows["hardblink_majority"]
    assert "control_mmbench" not in rows  # it stands in the row of mmbench
    alone = headline_table(figures=fake.figures()[:5], control=None, published=read_published(fake.PUBLISHED))
    assert "control" not in alone


def test_own_figures_stand_first_without_columns_of_figures_that_nobody_published() -> None:
    own = [fake.figure("codebook_usage", 98.0), fake.figure("questions_exact", 40.0), fake.figure("masks_giou", 30.0)]
    own += [fake.figure("questions_majority", 20.0), fake.figure("control_questions_exact", 35.0)]
    table = headline_table(figures=own, control="control", published=read_published(fake.PUBLISHED))
    assert re.findall(r'<tr class="group"><th colspan="5">(.*?)</th>', table) == [
        "Your own validation pictures",
        "Depth codebook",
    ]
    assert "Perceptio-8B" not in table
    rows = {match[1]: match[0] for match in re.finditer(r'<tr[^>]*><th title="(\w+)">.*?</tr>', table)}
    assert list(rows) == ["questions_exact", "questions_majority", "masks_giou", "codebook_usage"]
    assert "35.0" in rows["questions_exact"]
    assert "not asked: it needs tokens" in rows["masks_giou"]
    shown = tiles(own, control="control")
    assert "Your questions, exact answer</span><b>40.0</b>" in shown
    assert "control 35.0" in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(71.84, "71.8"), (0.0432, "0.043"), (1654.0, "1654"), (0.0, "0.0"), (100.0, "100.0"), (999.96, "1000.0")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_tokens_are_set_off_and_text_is_escaped() -> None:
    html = tokens_html("[SEG]<depth_start><depth_3><depth_12><depth_end>(B) <b>")
    assert html.startswith('<span class="seg">[SEG]</span><details>')
    assert "2 codes" in html
    assert "> 3 12 <" in html
    assert html.endswith("(B) &lt;b&gt;")
    assert "1 codes" in tokens_html("<depth_start><depth_3>")  # cut off


def test_overlay_tints_the_prediction_and_outlines_the_truth() -> None:
    image = Image.new("RGB", (6, 6), (0, 0, 0))
    predicted, true = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    predicted[:, :2] = True
    true[1:5, 1:5] = True
    pixels = np.asarray(overlay(image=image, predicted_HW=predicted, true_HW=true))
    assert tuple(pixels[0, 0]) == tuple(round(0.55 * value) for value in PREDICTED)
    assert tuple(pixels[1, 1]) == TRUE
    assert tuple(pixels[2, 2]) == (0, 0, 0)  # inside the outline
    assert tuple(pixels[5, 5]) == (0, 0, 0)


def test_depth_pictures_are_bright_where_near() -> None:
    depth = np.linspace(-3, 7, 16, dtype=np.float32).reshape(4, 4)
    pixels = np.asarray(depth_picture(depth, size=(4, 4))).astype(int).sum(-1)
    assert pixels[3, 3] > pixels[0, 0]
    assert np.asarray(depth_picture(np.ones((4, 4), np.float32), size=(8, 2))).shape == (2, 8, 3)  # flat is no error
    depth = np.tile(np.linspace(0, 1, 20, dtype=np.float32), (20, 1))
    depth[0, 0] = 100.0  # far nearer than the rest, which keeps its colours
    pixels = np.asarray(depth_picture(depth, size=(20, 20))).astype(int).sum(-1)
    assert pixels[10, 19] > pixels[10, 10] + 100 > pixels[10, 0] + 200
    assert shrink(Image.new("L", (1000, 10)), side=100).size == (100, 1)
    assert shrink(Image.new("L", (10, 20)), side=100).size == (10, 20)


def test_smoothing_by_hand() -> None:
    assert smooth([4.0, 1.0], weight=0.5).tolist() == [4.0, (0.5 * 4 + 1) / 1.5]
    assert smooth([2.0] * 9, weight=0.9) == pytest.approx([2.0] * 9)


def test_plots_follow_the_text_colour_and_are_reproducible() -> None:
    svg = usage_plot([3, 0, 5])
    assert svg == usage_plot([3, 0, 5])
    assert svg.startswith("<svg role=")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert 'width="' not in svg[: svg.index(">")]


def test_lock_file_gives_the_stages_of_one_profile_in_order(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(fake.LOCK)
    records = read_lock(path=tmp_path / "dvc.lock", outputs=Path("artifacts/mini"))
    assert [record.name for record in records] == ["depth_codebook", "cotrain@full", "evaluate@full"]
    trained = records[1]
    assert trained.writes[0].hash == "77aa.dir"
    assert trained.parameters == {"cotrain": {"steps": 600, "seed": 0}, "variants.full": {}}
    assert read_lock(path=tmp_path / "none", outputs=Path("artifacts/mini")) == []


def test_git_state(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert git_state(folder=tmp_path) == "unknown"
    git("init", "-q")
    for name in ("a.py", "dvc.lock"):
        (tmp_path / name).write_text("1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    clean = git_state(folder=tmp_path)
    assert re.fullmatch(r"[0-9a-f]{12}", clean)
    (tmp_path / "dvc.lock").write_text("2\n")
    assert git_state(folder=tmp_path) == clean  # DVC itself writes it while the pipeline runs
    (tmp_path / "a.py").write_text("2\n")
    assert git_state(folder=tmp_path) == f"{clean} + changes"


class Checker(HTMLParser):
    """Collects ids, links, and every address that a browser would fetch; checks that elements close in order."""

    VOID = frozenset({"meta", "img", "br", "link", "line", "circle", "path", "use", "rect", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, attrs)

    def note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "a":
            self.targets.append(values["href"])
        elif source := values.get("src") or (tag == "link" and values.get("href")):
            self.fetched.append(str(source))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    content = fake.content(tmp_path)
    html = page(content)
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert {target.removeprefix("#") for target in checker.targets} <= checker.ids
    assert checker.fetched
    assert all(source.startswith("data:image/") for source in checker.fetched)
    assert "<script" not in html  # the fake question tries to bring one
    assert "&lt;script&gt;" in html
    assert not re.search(r"url\((?!#)|@import", html)
    for text in ("control, same base", "cannot be compared", "depth it wrote", "IoU 100", "77aa.dir", "0123456789ab"):
        assert text in html
    for text in ("31 by their COCO id, 7 more by their look", "1,204 files are copies", "<td>4,800</td>"):
        assert text in html
    for row in (
        "<th>full</th><td>11,520: 60.0 % (60.0 %), 1.54 epochs</td><td>7,680: 40.0 % (40.0 %), 0.96 epochs</td>",
        "<th>control</th><td>11,520: 60.0 % (60.0 %), 1.54 epochs</td><td>none</td>",
        "<th>dropped: test images, by id</th><th>dropped: in quarantine</th></tr>",
        "<th>train, referring, refcoco</th><td>2,500</td><td>7,500</td><td>93</td><td>4</td>",
        "<th>train, marker, teacher_depth</th><td>9,600</td><td>0</td><td>0</td><td>0</td>",
    ):
        assert row in html
    assert html.count('<article class="panel">') == 5
    bare = replace(content, control=None, panels=[], stages=[], usage=[], training={}, curves={"full": {}}, caveat="")
    assert "was not part of this run" in page(bare)


def test_panels_outside_the_data_root_are_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    row = fake.rows(tmp_path / "root")[0] | {"image": "../secret.png"}
    (tmp_path / "root" / "panels.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"panels\.jsonl: '\.\./secret\.png' leads out of the image folder"):
        fake.panels(tmp_path / "root")


def test_panels_come_in_turn_from_every_benchmark(tmp_path: Path) -> None:
    panels = fake.content(tmp_path).panels
    assert [panel.row["benchmark"] for panel in panels] == ["res", "hardblink", "res", "hardblink", "res"]


def test_readme_figure_is_a_wide_picture(tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_bytes(readme_figure(fake.content(tmp_path).panels))
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width > 2.5 * image.height
    with pytest.raises(ValueError, match="no panels"):
        readme_figure([])

"""The report: metrics gathered, tables, tokens, pictures, and the page of a fake run."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import report_fake as fake
from browser import CHROMIUM, browser
from perceptio_core.metrics import Metric, read_metrics, write_metrics
from perceptio_core.report.headline import gather
from perceptio_core.report.page import page
from perceptio_core.report.panels import Panel, Span, spans
from perceptio_core.report.pictures import PREDICTED, TRUE, depth_picture, overlay, shrink
from perceptio_core.report.plots import COLOURS, loss_plot, smooth, usage_plot
from perceptio_core.report.published import read_published
from perceptio_core.report.readme_figure import readme_figure
from perceptio_core.report.tables import CONTROLS, headline_groups, number, parts_table, tiles

CSS = Path(__file__).resolve().parents[1] / "perceptio_core" / "report" / "templates" / "report.css"


def written(folder: Path, metrics: list[Metric]) -> Path:
    folder.mkdir(exist_ok=True)
    write_metrics(folder, metrics)
    return folder / "metrics.json"


@pytest.mark.parametrize("order", [("full", "control"), ("control", "full")])
def test_metrics_of_other_variants_than_full_carry_their_names(order: tuple[str, ...], tmp_path: Path) -> None:
    codebook = written(tmp_path / "codebook", [fake.metric("codebook_usage", 98.0)])
    full = written(tmp_path / "full", [fake.metric("mmbench", 60.0, chance=5.0), fake.metric("res_ciou", 55.0)])
    control = written(tmp_path / "control", [fake.metric("mmbench", 61.0)])
    files = {"full": full, "control": control}
    metrics = gather(codebook=codebook, evaluations={name: files[name] for name in order})
    values = {metric.name: metric.value for metric in metrics}
    assert values == {"codebook_usage": 98.0, "mmbench": 60.0, "res_ciou": 55.0, "control_mmbench": 61.0}
    assert next(metric.chance for metric in metrics if metric.name == "mmbench") == 5.0
    assert read_metrics(written(tmp_path, metrics)) == metrics
    assert json.loads((tmp_path / "summary.json").read_text()) == values


def test_metrics_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"mmbench": 3}')
    with pytest.raises(ValueError, match=r"metrics\.json: expected a list of metrics, got dict"):
        read_metrics(path)
    path.write_text('[{"name": "mmbench", "value": 3}]')
    with pytest.raises(ValueError, match=r"metrics\.json: metric 0: expected an object with the keys"):
        read_metrics(path)
    path.write_text(json.dumps([fake.metric("mmbench", 1.0).to_json() | {"value": float("nan")}]))
    with pytest.raises(ValueError, match=r"metric 0 \(mmbench\): value must be a finite number"):
        read_metrics(path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path, [replace(fake.metric("mmbench", 1.0), high=float("inf"))])
    written(tmp_path, [fake.metric("mmbench", 1.0)])
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


def test_headline_rows_have_controls_and_published_beside() -> None:
    published = read_published(fake.PUBLISHED)
    groups = headline_groups(fake.metrics(), controls=CONTROLS, published=published)
    rows = {row.metric.name: row for group in groups for row in group.rows}
    mean = rows["hardblink_mean"]
    assert (mean.metric.value, mean.metric.chance) == (71.8, 26.1)
    assert [(control.variant, other and other.value) for control, other in mean.controls] == [
        ("no_depth", 64.5),
        ("control", 66.0),
    ]
    assert [value for _, value in mean.published] == [71.0, None, 60.7]
    assert rows["hardblink_majority"].label.baseline
    assert rows["mme_perception"].label.top == 2000, "ten subtasks, of which chance gives 75 points each"
    assert not any(name.startswith(("control_", "no_depth_")) for name in rows)
    assert [other and other.value for _, other in rows["res_ciou"].controls] == [57.9, None]
    alone = headline_groups(fake.metrics()[:5], controls=[], published=published)
    assert all(row.controls == [] for group in alone for row in group.rows)


def test_own_metrics_stand_first_without_columns_of_figures_that_nobody_published() -> None:
    own = [fake.metric("codebook_usage", 98.0), fake.metric("questions_exact", 40.0), fake.metric("masks_giou", 30.0)]
    own += [fake.metric("questions_majority", 20.0), fake.metric("control_questions_exact", 35.0), fake.metric("novel", 1.0)]
    groups = headline_groups(own, controls=CONTROLS[1:], published=read_published(fake.PUBLISHED))
    assert [group.title for group in groups] == ["Your own validation pictures", "Depth codebook", "More"]
    assert all(row.published == [] for group in groups for row in group.rows)
    names = [row.metric.name for group in groups for row in group.rows]
    assert names == ["questions_exact", "questions_majority", "masks_giou", "codebook_usage", "novel"]
    assert groups[0].rows[0].controls == [(CONTROLS[1], fake.metric("control_questions_exact", 35.0))]
    first = tiles(own, controls=CONTROLS[1:])[0]
    assert (first.title, first.value) == ("Your questions, exact answer", "40.0")
    assert first.notes == ["95 %: 37.0 to 43.0", "control 35.0"]
    depth = next(tile for tile in tiles(fake.metrics(), controls=CONTROLS) if tile.title.startswith("Depth order"))
    assert depth.notes == ["95 %: 68.8 to 74.8", "chance 26.1", "without depth 64.5", "control 66.0", "majority 29.0"]


def test_parts_say_interval_chance_and_protocol() -> None:
    table = parts_table({"full": [fake.metric("mmbench/l2", 61.0, n=1240, chance=6.25)]})
    assert table.rows == [["mmbench/l2", "full", "61.0", "58.0 – 64.0", "6.2", "1\u202f240", "strict, generated"]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(71.84, "71.8"), (0.0432, "0.043"), (1654.0, "1654"), (0.0, "0.0"), (100.0, "100.0"), (999.96, "1000.0")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_perception_tokens_are_set_apart() -> None:
    assert spans("[SEG]<depth_start><depth_3><depth_12><depth_end>(B) <b>") == [
        Span(kind="seg", text="[SEG]"),
        Span(kind="depth", codes=["3", "12"]),
        Span(kind="text", text="(B) <b>"),
    ]
    assert spans("so <depth_start><depth_3>") == [Span(kind="text", text="so "), Span(kind="depth", codes=["3"])]  # cut off


def test_alternative_texts_say_what_is_there() -> None:
    mask, depth = np.zeros((90, 90), bool), np.zeros((90, 90), np.float32)
    mask[:30, 60:] = True
    depth[60:, 30:60] = 1.0
    depth[:30, :30] = -1.0
    row = fake.encode_row(predicted=mask, true=np.zeros_like(mask))
    panel = Panel(row=row, image=Image.new("RGB", (90, 90)), depth=depth, teacher=None)
    assert [picture.alt for picture in panel.pictures] == [
        "The picture of the question: Where is it?",
        "The image with the predicted mask, a tint, on 11 % of it at the top right and the true mask, an outline, empty",
        "Depth map (depth it wrote): nearest at the bottom, farthest at the top left",
    ]


def test_overlay_tints_the_prediction_and_outlines_the_truth() -> None:
    image = Image.new("RGB", (6, 6), (0, 0, 0))
    predicted, true = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    predicted[:, :2] = True
    true[1:5, 1:5] = True
    pixels = np.asarray(overlay(image, [predicted], outline_HW=true))
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
    assert 'aria-label="Share of each depth code: the most used 62 %, the least 0 %, an even share 33 %"' in svg
    losses = loss_plot({"<full>": {"train/total": ([1, 2], [1.0, 0.5]), "val/total": ([2], [0.4])}}, ["total"])
    label = "total over the steps, &lt;full&gt; from 1 to 0.63 at step 2, 0.4 on the validation split"
    assert f'aria-label="{label}"' in losses
    both = usage_plot([3, 0, 5]) + losses
    assert not set(re.findall(r' id="([^"]*)"', usage_plot([3, 0, 5]))) & set(re.findall(r' id="([^"]*)"', losses))
    assert "<style" not in both  # it would hold for the whole page


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def schemes() -> Iterator[dict[str, str]]:
    """The colours of the style sheet by name: light, then dark."""
    for block in re.findall(r":root \{(.*?)\}", CSS.read_text(), flags=re.DOTALL):
        yield {name: value * 2 if len(value) == 3 else value for name, value in re.findall(r"--([\w-]+): (#\w{6});", block)}


def test_colours_have_contrast_in_light_and_dark() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # the well-known limit
    light, dark = schemes()
    texts, grounds = ("ink", "soft", "accent", "cool", "good", "bad"), ("paper", "card", "chip", "note")
    for scheme in (light, dark):
        for text in texts:
            for ground in grounds:
                assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
        for drawn in (*COLOURS, scheme["axis"]):
            assert contrast(drawn, scheme["card"]) >= 3, drawn
    # Texts have no other colours than these.
    used = set(re.findall(r"(?<![-\w])(?:color|fill): var\(--([\w-]+)\)", CSS.read_text()))
    assert used <= {*texts, "card"}
    assert not re.findall(r"(?<![-\w])color: (?!var|light)", CSS.read_text())


class Checker(HTMLParser):
    """Reads a page: its ids, links, pictures, tables, and every address that a browser would fetch; elements close in order."""

    VOID = frozenset({"meta", "img", "br", "link", "line", "circle", "path", "use", "rect", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.fetched: list[str] = []
        self.pictures: list[str] = []
        self.heads: list[dict[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._caption, self._rows = "", list[list[str]]()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.targets.append(values["href"])
        elif source := values.get("src") or (tag == "link" and values.get("href")):
            self.fetched.append(str(source))
        if tag == "img" or (tag == "svg"):
            assert tag == "img" or values["role"] == "img"
            self.pictures.append(values["alt" if tag == "img" else "aria-label"])
        if tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")
            self.heads += [values] if tag == "th" else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if "caption" in self.open:
            self._caption += text
        elif ("th" in self.open or "td" in self.open) and text:
            self._rows[-1][-1] = f"{self._rows[-1][-1]} {text}".strip()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag
        if tag == "table":
            assert self._caption not in self.tables
            self.tables[self._caption] = self._rows


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    content = fake.content(tmp_path)
    html = page(content)
    seen = Checker(html)
    assert len(seen.ids) == len(set(seen.ids))
    assert {target.removeprefix("#") for target in seen.targets} <= set(seen.ids)
    assert seen.fetched
    assert all(source.startswith("data:image/") for source in seen.fetched)
    assert "<script" not in html  # the fake question tries to bring one
    assert "&lt;script&gt;" in html
    assert not re.search(r"url\((?!#)|@import", html)
    words = " ".join(html.split())
    for text in (
        "cannot be compared",
        "depth it wrote",
        "IoU 100",
        "31 by their COCO id, 7 more by their look",
        "1,204 files",
    ):
        assert text in words
    assert html.count('<article class="panel">') == 5
    bare = replace(content, controls=[], panels=[], inputs=[], usage=[], training={}, curves={"full": {}}, caveat="")
    assert "No control, the same training without perception tokens, was part of this run." in page(bare)


def test_every_table_has_a_caption_and_scoped_heads_and_every_picture_a_text(tmp_path: Path) -> None:
    seen = Checker(page(fake.content(tmp_path)))
    assert all(seen.tables)
    assert {head.get("scope") for head in seen.heads} == {"col", "row", "rowgroup"}
    assert len(seen.pictures) > 30
    assert all(len(text) > 20 for text in seen.pictures)
    headline = seen.tables["Metrics of this run, of the controls, and published ones"]
    controls = ["without depth tokens, same base", "control, same base"]
    assert headline[0][:7] == ["metric", "this run", *controls, "chance", "on its scale", "n"]
    mean = next(row for row in headline if row[0] == "mean, strict strict, generated")
    assert mean == [
        mean[0],
        "71.8 68.8 – 74.8",
        "64.5 61.5 – 67.5",
        "66.0 63.0 – 69.0",
        "26.1",
        "0 50 100",
        "124",
        "71.0",
        "",
        "60.7",
    ]
    assert (
        "71.8 on a scale from 0 to 100, interval 68.8 to 74.8, without depth 64.5, control 66.0, chance 26.1" in seen.pictures
    )
    masks = next(row for row in headline if row[0] == "cIoU strict, generated")
    assert masks[2:5] == ["57.9 54.9 – 60.9", "not asked", "none"]
    assert seen.tables["Images"] == [["split", "images"], ["train", "4,800"], ["val", "160"]]
    samples = seen.tables["Samples, records, and records dropped"]
    assert samples[0][3:] == ["dropped: test images, by id", "dropped: in quarantine"]
    assert samples[1:3] == [
        ["train, marker, teacher_depth", "9,600", "0", "0", "0"],
        ["train, referring, refcoco", "2,500", "7,500", "93", "4"],
    ]
    drawn = seen.tables["Samples drawn in training: their share of all (the share wanted), and how often each came"]
    assert drawn[1:] == [
        ["full", "11,520: 60.0 % (60.0 %), 1.54 epochs", "7,680: 40.0 % (40.0 %), 0.96 epochs"],
        ["control", "11,520: 60.0 % (60.0 %), 1.54 epochs", "none"],
    ]
    (file,) = seen.tables["Files behind this page"][1:]
    assert file == ["artifacts/mini/cotrain/full/metrics.json", "training of full", "77aa" * 16]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    pages = [page(fake.content(tmp_path)) for _ in range(2)]
    assert pages[0] == pages[1]


BEYOND = """(() => { const width = document.documentElement.clientWidth, found = [];
  for (const element of document.querySelectorAll('body *')) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (style.position == 'absolute' || element.closest('thead, svg :not(svg)')) continue;
    if (box.width && (box.right > width + 1 || box.left < -1)) found.push(element.tagName + ' ' + element.className);
    if (style.overflowX != 'visible' && element.scrollWidth > element.clientWidth + 1) found.push('cut: ' + element.className);
  }
  return JSON.stringify(found); })()"""
"""The elements that reach beyond the window, or whose content is cut."""
FAINT = """(() => { const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = rgb => { const [r, g, b] = rgb.slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = element => { for (; element; element = element.parentElement) {
    const colour = numbers(getComputedStyle(element).backgroundColor);
    if (colour[3] === undefined) return colour; }
    return [9, 9, 9]; };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  let read = 0;
  while (texts.nextNode()) { const text = texts.currentNode, element = text.parentElement;
    if (!text.textContent.trim()) continue;
    const style = getComputedStyle(element);
    const colour = numbers(element.closest('svg') ? style.fill : style.color);
    const [low, high] = [colour, ground(element)].map(luminance).sort((a, b) => a - b);
    read += 1;
    if ((high + 0.05) / (low + 0.05) < 4.5) found.push(text.textContent); }
  return JSON.stringify(read > 200 ? found : ['only ' + read + ' texts']); })()"""
"""The texts with a contrast below 4.5."""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser_nothing_is_cut_and_every_text_has_contrast(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page(fake.content(tmp_path)), encoding="utf-8")
    with browser(tmp_path / "home") as tab:
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                tab.show_as(width=width, scheme=scheme)
                tab.open((tmp_path / "report.html").as_uri())
                tab.wait_for("document.readyState == 'complete' && document.querySelector('footer') != null")
                tab.ask("document.querySelectorAll('details').forEach(details => details.open = true)")
                assert tab.ask("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
                assert tab.ask("innerWidth") == width
                assert json.loads(tab.ask(BEYOND)) == [], (width, scheme)
                assert json.loads(tab.ask(FAINT)) == [], (width, scheme)


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

"""The page: answers that grow, codes put in their place, follow-ups, benchmarks' questions, samples of the stages; headless."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from browser import CHROMIUM, browser
from fake_pipeline import environment
from joint_inputs import PARAMS, SIZE, joint_inputs
from parameters import values_of
from perceptio_core.data.images import open_image
from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.rle import encode
from perceptio_core.data.shards import tars
from perceptio_core.data.shards.joint import ShardMaker
from perceptio_core.data.shards.plan import Plan, write_plan
from perceptio_core.depth.teacher import Teacher
from perceptio_core.evaluation.running.depth_codes import TeacherEncoder
from perceptio_core.grammar import strip_perception
from perceptio_core.jsonl import write_jsonl
from perceptio_core.model.inference import Perceptor, Prediction
from perceptio_core.params.values import read_values
from pipeline import cli
from tiny import lively, tiny_perceptio
from tiny_checkout import OF_THIS_REPOSITORY

pytest.importorskip("gradio", reason="the extra `page` is not installed")
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from pipeline.page.app import POLICY, build, launch
from pipeline.page.models import Models
from pipeline.page.samples import Samples

QUESTION = "Which point is the closest to the camera?"
EXAMPLES = ["Is there a ball?", "Which point is nearest?"]
CODE = re.compile(r"Row \d+, column \d+: code (\d+) of 6")
DECIDES, YES, NO, OWN = "up to the model", "yes", "no", "its own"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was trained without perception tokens."""
    folder = tmp_path_factory.mktemp("plain")
    model, processor = tiny_perceptio(tmp_path_factory.mktemp("tiny"), tied=False, order=())
    lively(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of the stages up to the joint shards, and an evaluation of two own questions, one right, and one own mask."""
    top = joint_inputs(tmp_path_factory.mktemp("checkout"))
    made = top / "artifacts/t"
    root, shards = made / "sources/root", made / "joint_shards"
    shards.mkdir()
    write_plan(top / "plan", sources=made / "sources", depth=made / "teacher_depth", params=PARAMS)
    maker = ShardMaker(root=root, depth=made / "teacher_depth", codebook=made / "depth_codebook", params=PARAMS, reasons={})
    plan = Plan(top / "plan", params=PARAMS)
    parts = [maker.make(plan.job(name), folder=shards) for name in ("train-00000", "val-00000")]
    tars.write_index(shards, parts, quarantine=[], manifest={}, about={})
    (made / "foundations/depth_anything").mkdir(parents=True)

    mask = np.zeros((SIZE, SIZE), bool)
    mask[:20, :30] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(root / "mask.png")
    asked = [
        {"image": "0.jpg", "question": "What is it?", "answer": "yes"},
        {"image": "1.png", "question": "What is there?", "answer": "no"},
    ]
    for name, rows in {"q": asked, "m": [{"image": "0.jpg", "expression": "the ball", "mask": "mask.png"}]}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "evaluate/full").mkdir(parents=True)
    panels = zip(("pictures/0.jpg", "pictures/1.png"), EXAMPLES, strict=True)
    write_jsonl(made / "evaluate/full/panels.jsonl", [{"image": image, "question": asked} for image, asked in panels])
    values = {"profile": "t", **values_of("smoke"), "variants": {"full": {}}}
    values["evaluate"]["benchmarks"] = [
        {"kind": "questions", "path": "q.jsonl", "images": "pictures"},
        {"kind": "masks", "path": "m.jsonl", "images": "pictures", "masks": "."},
        {"kind": "hardblink", "path": "h", "name": "codes", "codes": "zeroed"},
    ]
    (top / "params.yaml").write_text(yaml.safe_dump(values))
    return top


@pytest.fixture(scope="module")
def page(checkpoint: Path, plain: Path, checkout: Path) -> Iterator[str]:
    """The page of that checkout, served in this process; its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)
        patch.setattr(Teacher, "from_pretrained", lambda _folder: _Teacher())
        models = Models({"tiny": checkpoint, "plain": plain}, values=read_values(), device="cpu", dtype=None)
        made = build(models, read_values(), stage=None, folder=checkout)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launch(made, port=port)
        yield f"http://127.0.0.1:{port}"
        made.close(verbose=False)


class _Teacher:
    """Sees the red of a picture as its inverse depth."""

    def pixels(self, image: Image.Image) -> torch.Tensor:
        return torch.tensor(np.asarray(image, np.float32)[..., 0])

    def inverse_depth(self, pixels: list[torch.Tensor], sizes: list[tuple[int, int]]) -> list[np.ndarray]:
        return [one.numpy()[:height, :width] for one, (height, width) in zip(pixels, sizes, strict=True)]


@pytest.fixture
def client(page: str) -> Client:
    return Client(page, verbose=False, analytics_enabled=False)


@pytest.fixture
def picture(checkout: Path) -> Path:
    return checkout / "artifacts/t/sources/root/pictures/1.png"


def given(picture: Path | None, question: str = QUESTION, **changes: Any) -> list[Any]:
    values: dict[str, Any] = {
        "picture": None if picture is None else handle_file(picture),
        "question": question,
        "model": "tiny",
        "masks": DECIDES,
        "depth": DECIDES,
        "codes": OWN,
        "other": None,
        "beside": "none",
        "codes_beside": OWN,
    }
    assert changes.keys() <= values.keys()
    return list((values | changes).values())


def predicted(checkpoint: Path, picture: Path, question: str = QUESTION, **options: Any) -> Prediction:
    model = Perceptor.from_pretrained(checkpoint, device="cpu")
    return model.predict([open_image(picture)], [question], max_new_tokens=64, **options)[0]


def said(html: str) -> list[str]:
    """The texts of the answers."""
    return [unescape(re.sub(r"<[^>]*>", "", text)) for text in re.findall(r'<p class="said">(.*?)</p>', html, flags=re.DOTALL)]


def codes(html: str) -> list[int]:
    return list(map(int, CODE.findall(html)))


def test_an_answer_grows_and_ends_as_predict_has_it(client: Client, checkpoint: Path, picture: Path) -> None:
    job = client.submit(*given(picture, masks=YES, depth=YES), api_name="/ask")
    job.result(timeout=120)
    growing = [html for html, _ in job.outputs()]
    answer = predicted(checkpoint, picture, segment=True, depth=True)
    assert answer.depth_codes is not None
    assert len(growing) > 3
    texts = [said(html)[0] for html in growing]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert len(texts[0]) < len(texts[-1]), "text came at once"
    assert texts[-1].strip() == answer.text
    masks = [html.count("<input") for html in growing]
    assert masks == sorted(masks)
    assert masks[-1] == len(answer.masks) > 0
    written = [codes(html) for html in growing]
    assert [len(row) for row in written] == sorted(len(row) for row in written)
    assert written[-1] == answer.depth_codes.tolist()
    assert "The depth map that the codes stand for" in growing[-1]
    assert 'class="caret"' in growing[0]
    assert 'class="caret"' not in growing[-1]


def test_spans_are_switched_off(client: Client, picture: Path) -> None:
    html, _ = client.predict(*given(picture, masks=NO, depth=NO), api_name="/ask")
    assert "no mask" in html
    assert codes(html) == []


def test_codes_of_the_teacher_of_another_picture_and_at_random(
    client: Client, checkpoint: Path, checkout: Path, picture: Path
) -> None:
    """The answers stand in the table of all that was asked, the last one first."""
    other = picture.with_name("3.jpg")
    model = Perceptor.from_pretrained(checkpoint, device="cpu").model
    encoder = TeacherEncoder(teacher=checkout, codebook=model.codebook, long_side=128)
    encoder._teacher = _Teacher()  # type: ignore[assignment]
    expected = encoder([open_image(picture), open_image(other)])
    html, _ = client.predict(*given(picture, codes="the teacher's"), api_name="/ask")
    assert codes(html) == expected[0].tolist()
    assert said(html)[0].strip() == predicted(checkpoint, picture, depth=True, depth_codes=expected[:1]).text
    html, _ = client.predict(*given(picture, codes="another picture's", other=handle_file(other)), api_name="/ask")
    assert codes(html) == expected[1].tolist()
    drawn = [codes(client.predict(*given(picture, codes="random"), api_name="/ask")[0]) for _ in range(4)]
    assert len(set(map(tuple, drawn))) > 1, "each time others"
    html, table = client.predict(*given(picture, codes="code 0 everywhere"), api_name="/ask")
    assert codes(html) == [0] * 4
    by = re.findall(r"<td>(tiny.*?)</td>", table)
    assert by == [
        "tiny, code 0 everywhere depth codes",
        *["tiny, random depth codes"] * 4,
        "tiny, another picture&#39;s depth codes",
        "tiny, the teacher&#39;s depth codes",
    ]


def test_two_stand_beside_each_other(client: Client, checkpoint: Path, plain: Path, picture: Path) -> None:
    html, table = client.predict(*given(picture, beside="plain"), api_name="/ask")
    expected = [predicted(folder, picture).text for folder in (checkpoint, plain)]
    assert [text.strip() or "no text" for text in said(html)] == [text or "no text" for text in expected]
    assert table.count("<tr>") == 3
    html, _ = client.predict(*given(picture, beside="tiny", codes_beside="code 0 everywhere"), api_name="/ask")
    assert codes(html)[-4:] == [0] * 4


def test_a_follow_up_is_told_the_turns_before_it(client: Client, checkpoint: Path, picture: Path) -> None:
    client.predict(*given(picture), api_name="/ask")
    html, _ = client.predict(*given(picture, "yes"), api_name="/follow_up")
    first = predicted(checkpoint, picture)
    told = predicted(checkpoint, picture, "yes", history=[[(QUESTION, first.raw)]], depth=False)
    assert said(html)[0].strip() == told.text
    alone = predicted(checkpoint, picture, "yes", depth=False)
    assert alone.raw != told.raw, "or this shows nothing"
    html, _ = client.predict(*given(picture.with_name("2.webp"), "yes"), api_name="/follow_up")
    assert "tiny has not answered about this picture yet" in html


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"question": " "}, "there is no question yet"),
        ({"model": "plain", "masks": YES}, "cannot force a segmentation span: the model was trained without"),
        ({"codes": "random", "depth": NO}, "depth tokens are switched off"),
        ({"codes": "another picture's"}, "another picture&#39;s codes need another picture"),
    ],
)
def test_a_refusal_is_a_sentence_on_the_page(client: Client, picture: Path, changes: dict[str, str], sentence: str) -> None:
    html, _ = client.predict(*given(picture, **changes), api_name="/ask")
    assert 'role="alert"' in html
    assert sentence in html


def test_a_picture_that_cannot_be_read_is_a_sentence(client: Client, tmp_path: Path, picture: Path) -> None:
    assert "there is no picture yet" in client.predict(*given(None), api_name="/ask")[0]
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:600])
    (tmp_path / "note.png").write_bytes(b"hello")
    assert "cut.png: damaged or cut off" in client.predict(*given(tmp_path / "cut.png"), api_name="/ask")[0]
    html, _ = client.predict(*given(tmp_path / "note.png"), api_name="/ask")
    assert "note.png: no picture; allowed are" in html
    assert str(tmp_path) not in html


def test_what_the_model_says_is_no_html(client: Client, picture: Path) -> None:
    html, table = client.predict(*given(picture, "<img src=x onerror=alert(1)>"), api_name="/ask")
    assert "<img src=x" not in html + table
    assert "&lt;img src=x" in table


def test_a_benchmarks_question_is_judged_by_its_rule(client: Client, checkpoint: Path, picture: Path) -> None:
    listed = client.predict("questions", "tiny", "all", api_name="/questions")
    ids = [value for _, value in listed["choices"]]
    assert len(ids) == 2
    shown, question = client.predict("questions", ids[1], api_name="/question")
    assert question.startswith("What is there?")
    np.testing.assert_array_equal(np.asarray(open_image(Path(shown))), np.asarray(open_image(picture)))
    html, _ = client.predict(*given(Path(shown), question), api_name="/ask")
    answer = predicted(checkpoint, picture, question)
    right = strip_perception(answer.text).casefold().strip(" .") == "no"
    assert f"verdict {'right' if right else 'wrong'}" in html
    html, _ = client.predict(*given(picture.with_name("2.webp"), question), api_name="/ask")
    assert "verdict" not in html, "another picture"

    listed = client.predict("masks", "tiny", "all", api_name="/questions")
    shown, question = client.predict("masks", listed["choices"][0][1], api_name="/question")
    html, _ = client.predict(*given(Path(shown), question, masks=YES), api_name="/ask")
    (percent,) = re.findall(r">IoU (\d+)<", html)
    union = np.any(predicted(checkpoint, Path(shown), question, segment=True).masks, axis=0)
    truth = np.zeros((SIZE, SIZE), bool)
    truth[:20, :30] = True
    assert abs(int(percent) - 100 * (union & truth).sum() / (union | truth).sum()) < 1


def test_the_list_knows_what_the_evaluation_had_right(client: Client, checkout: Path) -> None:
    listed = client.predict("questions", "tiny", "all", api_name="/questions")
    ids = [value for _, value in listed["choices"]]
    assert not any(label.startswith(("✓", "✗")) for label, _ in listed["choices"]), "there was none"
    folder = checkout / "artifacts/t/evaluate/tiny/predictions"
    folder.mkdir(parents=True)
    rows = [{"item_id": one, "correct": float(number == 0)} for number, one in enumerate(ids)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for which, expected in {"all": ids, "answered right": ids[:1], "answered wrong": ids[1:]}.items():
        listed = client.predict("questions", "tiny", which, api_name="/questions")
        assert [value for _, value in listed["choices"]] == expected
        assert all(label.startswith("✓" if value == ids[0] else "✗") for label, value in listed["choices"])


def test_nothing_comes_from_elsewhere(page: str) -> None:
    """Every answer forbids the browser other servers; no part of the page that is always loaded names one to load from."""
    import httpx

    for path in ("/", "/config", "/theme.css"):
        answer = httpx.get(page + path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == POLICY
    assert not re.findall(r"url\(['\"]?https?://", httpx.get(page + "/theme.css").text)
    assert "http" not in POLICY


def test_samples_of_every_stage(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    made = checkout / "artifacts/t"
    evaluated = made / "evaluate/full/predictions"
    evaluated.mkdir(parents=True, exist_ok=True)
    samples = Samples(read_values())
    questions = samples._questions.benchmark("questions").items
    row = {
        "raw": "",
        "text": "perhaps",
        "masks": [],
        "depth_codes": [0, 1, 2, 3, 4, 5, 6, 7] * 2,
        "correct": 0.0,
        "error": None,
    }
    unread = row | {"item_id": questions[1].item_id, "correct": 0.0, "error": "cut off"}
    rows = [row | {"item_id": questions[0].item_id}, unread]
    (evaluated / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    mask = encode(np.ones((SIZE, SIZE), bool))
    item = samples._questions.benchmark("masks").items[0]
    row = row | {"item_id": item.item_id, "masks": [mask], "depth_codes": None, "correct": 0.15}
    (evaluated / "masks.jsonl").write_text(json.dumps(row) + "\n")
    (evaluated / "codes_hardblink.jsonl").write_text("")
    (made / "evaluate/full/quarantine.jsonl").write_text("")
    assert samples.stages() == ["sources", "teacher_depth", "depth_codebook", "joint_shards", "evaluate@full"]

    kinds = samples.kinds("sources")
    assert {name: kind.count for name, kind in kinds.items()} == {"conversation": 24, "referring": 96, "quarantine": 1}
    one = kinds["referring"].make(5)
    assert one.title == "set/1/1"
    assert ("expression", "it") in one.said
    assert [caption for _, caption in one.pictures] == ["1 masks"]
    assert ("answer", "A café.") in kinds["conversation"].make(0).said
    refused = kinds["quarantine"].make(0)
    assert (refused.title, list(refused.said)) == ("bad.jpg", [("why", "cut off")])

    kinds = samples.kinds("teacher_depth")
    assert {name: kind.count for name, kind in kinds.items()} == {"maps": 24, "quarantine": 1}
    assert len(kinds["maps"].make(0).pictures) == 2
    assert kinds["maps"].make(23).pictures == (), "the teacher refused it"

    kinds = samples.kinds("joint_shards")
    dataset = JointDataset(made / "joint_shards", "train")
    counts = {f"train, {task}": len(numbers) for task, numbers in dataset.tasks.items()}
    assert counts.items() <= {name: kind.count for name, kind in kinds.items()}.items()
    for task, numbers in dataset.tasks.items():
        sample, one = dataset[int(numbers[0])], kinds[f"train, {task}"].make(0)
        assert one.title == sample.key
        assert dict(one.said)["depth codes"] == " ".join(map(str, sample.depth_codes or ()))
        assert len(one.pictures) == 2

    kinds = samples.kinds("evaluate@full")
    assert [(name, kind.count) for name, kind in kinds.items()] == [
        ("masks", 1),
        ("masks, wrong", 1),
        ("questions", 2),
        ("questions, wrong", 2),
        ("codes_hardblink", 0),
        ("codes_hardblink, wrong", 0),
        ("quarantine", 0),
    ], "controls come last"
    answered = kinds["questions"].make(0)
    assert (dict(answered.said)["verdict"], dict(answered.said)["right answer"]) == ("wrong", "yes")
    assert answered.about.startswith("What is it?")
    assert len(kinds["questions"].make(0).pictures) == 2
    assert dict(kinds["questions"].make(1).said)["not asked"] == "cut off"
    assert dict(kinds["masks"].make(0).said)["verdict"] == "0.15 of 1"


def test_samples_are_shown_page_by_page(client: Client) -> None:
    kinds, place, html = client.predict("sources", api_name="/kinds")
    assert kinds["choices"] == [
        ["conversation (24)", "conversation"],
        ["referring (96)", "referring"],
        ["quarantine (1)", "quarantine"],
    ]
    assert place == 1
    assert html.count('<section class="sample">') == 6
    place, html = client.predict("sources", "quarantine", api_name="/samples")
    assert "cut off" in html
    with pytest.raises(AppError, match="foundation"):
        client.predict("no foundation", api_name="/kinds")


Outcome = tuple[int, str, str]


def run(folder: Path, *arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Outcome:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))  # the command sets its own, which is not to be the other page's after it
    monkeypatch.setattr(sys, "argv", ["perceptio", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    written = capsys.readouterr()
    return int(str(ended.value.code)), written.out, written.err


def test_a_mistake_is_one_sentence(
    tmp_path: Path, checkout: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"monkeypatch": monkeypatch, "capsys": capsys}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = run(checkout, "page", "--port", port, **how)
        assert (code, out) == (2, "")
        assert err.startswith(f"perceptio: port {port} of 127.0.0.1 is taken; --port names another")
    wrong = {
        (tmp_path, "page"): "there is no params.yaml here that says which model was trained: name one by --checkpoint",
        (checkout, "page"): "artifacts/t/cotrain/full/checkpoint: no trained model here; `perceptio repro` trains one",
        (checkout, "page", "--checkpoint", tmp_path): f"{tmp_path}: no trained model here",
        (checkout, "page", "--checkpoint", checkpoint, "--checkpoint", "nowhere"): "nowhere: no trained model here",
        (checkout, "look", "report"): "report has made nothing to look at; there are sources, teacher_depth, ",
        (tmp_path, "look"): "there is no params.yaml here",
    }
    for (folder, *arguments), sentence in wrong.items():
        code, out, err = run(folder, *arguments, "--port", 7999, **how)
        assert (code, out) == (2, ""), "no address of a page that will not be"
        assert err.startswith(f"perceptio: {sentence}")
        assert len(err.splitlines()) == 1


def test_tab_completes_a_stage_to_look_at(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"_PERCEPTIO_COMPLETE": "complete_bash", "COMP_WORDS": "perceptio look e", "COMP_CWORD": "2"}.items():
        monkeypatch.setenv(name, value)
    assert run(checkout, monkeypatch=monkeypatch, capsys=capsys) == (0, "evaluate\nevaluate@full\n", "")


def test_without_gradio(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for command in ("look", "page"):
        outcome = run(checkout, command, "--port", 7999, monkeypatch=monkeypatch, capsys=capsys)
        assert outcome == (2, "", "perceptio: the page needs Gradio: pip install 'perceptio[page]'\n")


def test_the_command_serves_on_loopback_and_stops(tmp_path: Path, checkpoint: Path, picture: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipeline.cli", "page", "--checkpoint", checkpoint, "--device", "cpu", "--port", str(port)]
    settings = (
        environment()
        | OF_THIS_REPOSITORY
        | {"TMPDIR": str(tmp_path)}
        | dict.fromkeys(("HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9")
    )
    # Of a shell's background jobs, among which the tests may be, the children ignore Ctrl-C.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=settings, preexec_fn=heed, **pipes) as served:
        try:
            assert served.stdout is not None
            assert next(served.stdout) == f"Perceptio: http://127.0.0.1:{port}   Stop with Ctrl-C.\n"
            html, _ = Client(f"http://127.0.0.1:{port}", verbose=False).predict(
                *given(picture, model=str(checkpoint)), api_name="/ask"
            )
            assert said(html)[0].strip() == predicted(checkpoint, picture).text
            assert len(list(tmp_path.glob("perceptio-page-*"))) == 1
            served.send_signal(signal.SIGINT)
            assert served.communicate(timeout=30) == ("", "perceptio: stopped\n"), "no bars, no sentences of Gradio's"
            assert served.returncode == 0
        finally:
            served.kill()
    assert list(tmp_path.glob("perceptio-page-*")) == [], "uploads are gone"


@pytest.mark.on_request
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(page: str, tmp_path: Path, width: int, scheme: str) -> None:
    """By keyboard alone, with a name for all that is asked for; nothing is asked of another server."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with browser(tmp_path / "home", width=width) as tab:
        tab.watch()
        tab.show_as(width=width, scheme=scheme)
        tab.open(page)
        tab.wait_for("document.querySelector('#examples button[aria-label]') !== null")
        assert tab.wait_for(f"document.body.classList.contains('dark') === {json.dumps(scheme == 'dark')}")
        named = tab.named()
        assert ("heading", "Perceptio") in named
        assert {("button", asked) for asked in EXAMPLES} | {("group", "Masks"), ("group", "Depth tokens")} <= set(named)
        told = ("button", "combobox", "group", "heading", "radio", "tab", "textbox")
        assert [role for role, name in named if role in told and not name] == []

        begins = "(top => top > -5 && top < 500)(document.querySelector('#answers').getBoundingClientRect().top)"
        seen = "(box => box.top > 0 && box.bottom < innerHeight)(document.querySelector('.refused').getBoundingClientRect())"
        focus = "document.activeElement.closest('#question, #ask') !== null"
        tab.tab_to("#question textarea")
        tab.type(QUESTION)
        tab.press("Enter", text="\r")
        tab.wait_for("document.querySelector('.refused')?.textContent.startsWith('there is no picture yet')")
        assert tab.wait_for(seen, within_s=10)
        tab.ask("scrollTo({ top: 0, behavior: 'instant' })")
        tab.press("Enter", text="\r")
        assert tab.wait_for(seen, within_s=10), "the same refusal again"
        assert tab.ask(focus)

        tab.tab_to("#examples button")
        tab.press("Enter", text="\r")
        tab.wait_for(f"document.querySelector('#question textarea').value === {json.dumps(EXAMPLES[0])}")
        tab.wait_for("document.querySelector('#picture img') !== null")
        tab.tab_to("fieldset[aria-label='Depth tokens'] label:nth-of-type(2) input")
        tab.press(" ", text=" ")
        tab.tab_to("#ask")
        assert tab.ask(begins) == (width == 1280)
        tab.press("Enter", text="\r")
        status = "document.querySelector('body > [role=status]').textContent"
        ended = tab.wait_for(f"{status}.includes('Masks: ') && {status}")
        assert ended.endswith(" A depth map."), "who listens is told how the answer ended"
        assert tab.wait_for(begins, within_s=10)
        assert tab.ask(focus)
        tab.tab_to(".cells > button")
        tab.press("ArrowRight")
        assert tab.wait_for("document.querySelector('.place').textContent").startswith("Row 1, column 2: code ")
        assert tab.ask("document.documentElement.scrollWidth") <= width

        tab.tab_to("[role=tab]:nth-of-type(2)")
        tab.press("Enter", text="\r")
        alts = tab.wait_for("[...document.querySelectorAll('#samples img')].map(image => image.alt).join('|')").split("|")
        assert [one.partition(";")[0] for one in alts] == [f"talk/{number}: picture" for number in range(6)]
        assert alts[0].endswith("; What?")
        assert tab.ask("document.querySelector('input[aria-label=Samples]').getBoundingClientRect().width") > 250
        assert tab.ask("document.documentElement.scrollWidth") <= width
    assert tab.requested
    elsewhere = [one for one in tab.requested if not one.startswith((page, "data:", "blob:"))]
    assert elsewhere == []

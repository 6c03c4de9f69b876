"""The tab where a picture is asked about: what is entered, and the answers that grow beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from perceptio_core.data.images import open_with_format
from perceptio_core.data.rle import decode
from perceptio_core.evaluation.benchmarks.benchmark import Item
from pipeline.page import drawing
from pipeline.page.benchmark_questions import Questions, picture_of
from pipeline.page.models import OWN, Models
from pipeline.page.refusals import shown_if_refused

CODES = {
    "its own": OWN,
    "the teacher's": "oracle",
    "random": "random",
    "another picture's": "other",
    "code 0 everywhere": "zeroed",
}
WISHES = {"up to the model": None, "yes": True, "no": False}
ALL, RIGHT, WRONG = "all", "answered right", "answered wrong"
NONE = "none"
MAX_NEW_TOKENS = 64
"""Most tokens of an answer's text (ours)."""


@dataclass
class Session:
    """What one browser tab has asked.

    Attributes:
        item: the benchmark's question that was chosen last, and of which benchmark.
        picture: the file that the turns are about.
        turns: per side of the page and model, the turns.
        rows: of the table of all that was asked.
    """

    item: tuple[str, Item] | None = None
    picture: str | None = None
    turns: dict[tuple[int, str], list[tuple[str, str]]] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two answers that stand beside each other."""

    number: int
    model: str
    codes: str


class Asking:
    """What the tab's buttons do.

    Args:
        models: the checkpoints.
        questions: of the benchmarks; None outside of a checkout.
    """

    def __init__(self, models: Models, questions: Questions | None) -> None:
        self._models, self._questions = models, questions

    def anew(self, *given: Any) -> Iterator[tuple[Any, ...]]:
        """Ask, without what was asked before."""
        yield from self._ask(False, *given)

    def further(self, *given: Any) -> Iterator[tuple[Any, ...]]:
        """Ask a follow-up: the model is told its earlier turns about the picture."""
        yield from self._ask(True, *given)

    def _ask(
        self,
        follow_up: bool,
        path: str | None,
        question: str,
        model: str,
        masks: str,
        depth: str,
        codes: str,
        other: str | None,
        beside: str,
        codes_beside: str,
        session: Session | None,
    ) -> Iterator[tuple[Any, ...]]:
        """The answers as they grow, beside each other, as HTML; the table of all that was asked; and the session."""
        session = session or Session()
        sides = [Side(number=0, model=model, codes=CODES[codes])]
        if beside != NONE:
            sides.append(Side(number=1, model=beside, codes=CODES[codes_beside]))
        shown = [""] * len(sides)

        def page() -> tuple[Any, ...]:
            return drawing.beside(shown), drawing.turns(session.rows), session

        if not follow_up or path != session.picture:
            session.turns.clear()
            session.picture = path
        for side in sides:
            named = next(name for name, value in CODES.items() if value == side.codes)
            title = f"{side.model}, {named} depth codes" if side.codes != OWN else side.model
            try:
                image = _opened(path)
                if not question.strip():
                    raise ValueError("there is no question yet: type one above")
                history = session.turns.get((side.number, side.model), [])
                if follow_up and not history:
                    raise ValueError(f"{side.model} has not answered about this picture yet: Ask comes before a follow-up")
                for html in self._answer(
                    side,
                    title,
                    image,
                    question.strip(),
                    history=history,
                    segment=WISHES[masks],
                    # A depth span was trained in the first answer alone.
                    depth=False if follow_up and WISHES[depth] is None and side.codes == OWN else WISHES[depth],
                    other=other,
                    session=session,
                ):
                    shown[side.number] = html
                    yield page()
            except (ValueError, OSError) as error:
                shown[side.number] = drawing.refusal(title, str(error))
                yield page()

    def _answer(
        self,
        side: Side,
        title: str,
        image: Image.Image,
        question: str,
        *,
        history: list[tuple[str, str]],
        segment: bool | None,
        depth: bool | None,
        other: str | None,
        session: Session,
    ) -> Iterator[str]:
        """One answer as it grows, as HTML; the last one, whole, becomes a turn of the session."""
        begun = time.monotonic()
        label, item = session.item or ("", None)
        if item is not None and not (
            question == item.question.strip() and np.array_equal(np.asarray(image), np.asarray(picture_of(item)))
        ):
            item = None  # another picture or question was put in its place
        codes_of = image if side.codes == "oracle" else None
        if side.codes == "oracle" and item is not None and item.unmarked:
            codes_of = picture_of(item, unmarked=True)
        if side.codes == "other" and other is not None:
            codes_of = _opened(other)
        config = self._models.get(side.model).model.config
        answer = drawing.Answer(
            title=title,
            image=image,
            truth=decode(item.truth) if item is not None and item.truth else None,
            num_codes=config.vocabulary.num_codes,
            side=self._models.get(side.model).model.codebook.grid,
        )
        prediction = None
        for prediction in self._models.ask(
            side.model,
            image,
            question,
            history=history,
            segment=segment,
            depth=depth,
            codes=side.codes,
            codes_of=codes_of,
            max_new_tokens=MAX_NEW_TOKENS,
        ):
            yield answer.html(prediction, seconds=None)
        assert prediction is not None  # one comes at least
        verdict = self._verdict(label, item, prediction) if item is not None else None
        session.turns.setdefault((side.number, side.model), []).append((question, prediction.raw))
        said = prediction.text or ("(a mask)" if prediction.masks else "(no text)")
        session.rows.insert(0, {"question": question, "by": title, "answer": said, "verdict": verdict.text if verdict else ""})
        yield answer.html(prediction, seconds=time.monotonic() - begun, verdict=verdict)

    def _verdict(self, label: str, item: Item, prediction: Any) -> drawing.Verdict | None:
        assert self._questions is not None  # the item is of theirs
        correct = self._questions.judge(label, item, prediction)
        if correct is None:
            return None
        if item.truth:
            return drawing.Verdict(text=f"IoU {100 * correct:.0f}", right=correct >= 0.5)
        text = f"right: {item.expected}" if correct else f"wrong, right answer: {item.expected}"
        return drawing.Verdict(text=text, right=bool(correct))

    def listed(self, label: str | None, model: str, which: str) -> Any:
        """The questions of a benchmark, for the list of them."""
        if label is None or self._questions is None:
            return gr.update(choices=[], value=None)
        right = {ALL: None, RIGHT: True, WRONG: False}[which]
        questions = self._questions
        found = shown_if_refused(questions.listed, label, variant=model, right=right)
        return gr.update(choices=[(one.label, one.item.item_id) for one in found], value=None, info=f"{len(found)} questions")

    def chosen(self, label: str, item_id: str | None, session: Session | None) -> tuple[Any, ...]:
        """Picture and question of what was chosen from the list, and the session."""
        if item_id is None or self._questions is None:
            return gr.skip(), gr.skip(), session
        questions = self._questions
        item = shown_if_refused(questions.item, label, item_id)
        image = shown_if_refused(picture_of, item)
        session = session or Session()
        session.item = (label, item)
        return image, item.question, session


def ask_tab(models: Models, questions: Questions | None, *, examples: Sequence[tuple[Path, str]]) -> None:
    """Lay the tab out, inside a `gr.Blocks`."""
    asking = Asking(models, questions)
    session = gr.State()  # of a browser tab; a Session once something is asked or chosen
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            picture = _upload(label="Picture", sources=["upload", "clipboard"], height=280, elem_id="picture")
            taken = gr.Dataset(
                components=[gr.Image(type="filepath", visible=False)],
                samples=[[str(path)] for path, _ in examples],
                type="index",
                layout="gallery",
                label="Examples",
                visible=bool(examples),
                elem_id="examples",
            )
            question = gr.Textbox(label="Question", lines=1, max_lines=6, placeholder="Ask about it", elem_id="question")
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", min_width=90, elem_id="ask")
                follow = gr.Button("Follow up", min_width=110, elem_id="follow")
                stop = gr.Button("Stop", min_width=70)
            with gr.Accordion("Model, spans and depth codes", open=True):
                model = gr.Dropdown(models.names, value=models.names[0], label="Model", filterable=False)
                masks = gr.Radio(list(WISHES), value="up to the model", label="Masks")
                depth = gr.Radio(
                    list(WISHES),
                    value="up to the model",
                    label="Depth tokens",
                    info="Follow-ups skip these unless you choose yes or other codes.",
                )
                codes = gr.Dropdown(list(CODES), value="its own", label="Depth codes", filterable=False)
                other = _upload(label="The other picture", sources=["upload"], height=140, visible=False)
            with gr.Accordion("Compare", open=False):
                beside = gr.Dropdown([NONE, *models.names], value=NONE, label="Second answer from", filterable=False)
                codes_beside = gr.Dropdown(list(CODES), value="its own", label="Depth codes", filterable=False)
            if questions is not None:
                with gr.Accordion("Questions of the benchmarks", open=False):
                    label = gr.Dropdown(
                        [name for name, one in questions.entries.items() if not one.is_control], value=None, label="Benchmark"
                    )
                    which = gr.Radio([ALL, RIGHT, WRONG], value=ALL, label="Show", info="in the last evaluation")
                    item = gr.Dropdown([], value=None, label="Question", filterable=True)
        with gr.Column(scale=7, min_width=320, elem_id="answered"):
            answers = gr.HTML(drawing.beside([]), elem_id="answers", apply_default_css=False)
            table = gr.HTML(elem_id="turns", apply_default_css=False)

    given = [picture, question, model, masks, depth, codes, other, beside, codes_beside, session]
    shown = [answers, table, session]
    running = [
        gr.on(
            [ask.click, question.submit],
            asking.anew,
            given,
            shown,
            concurrency_id="model",
            api_name="ask",
            show_progress="minimal",
        ),
        follow.click(asking.further, given, shown, concurrency_id="model", api_name="follow_up", show_progress="minimal"),
    ]
    stop.click(None, cancels=running)
    gr.on(
        [codes.change, codes_beside.change],
        lambda *chosen: gr.update(visible="another picture's" in chosen),
        [codes, codes_beside],
        other,
        api_visibility="private",
    )
    taken.click(lambda number: (str(examples[number][0]), examples[number][1]), taken, [picture, question], api_name="example")
    if questions is not None:
        gr.on([label.change, which.change, model.change], asking.listed, [label, model, which], item, api_name="questions")
        item.input(asking.chosen, [label, item, session], [picture, question, session], api_name="question")


def _upload(**given: Any) -> gr.Image:
    """A picture that stays the file it is: this project opens it, and says in a sentence why one cannot be read."""
    made = gr.Image(type="filepath", format="png", **given)
    made.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return made


def _opened(path: str | None) -> Image.Image:
    if path is None:
        raise ValueError("there is no picture yet: drop one, or take an example")
    return open_with_format(Path(path), name=Path(path).name).image

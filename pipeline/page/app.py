"""The page as Gradio serves it: its tabs, its looks, and what the browser may load."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perceptio_core.data.images import open_image
from perceptio_core.data.manifest.manifest import data_root
from perceptio_core.data.records import inside, spread
from perceptio_core.jsonl import read_jsonl
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.values import Values
from pipeline.page.ask import ask_tab
from pipeline.page.benchmark_questions import Questions
from pipeline.page.drawing import TEMPLATES
from pipeline.page.look import look_tab
from pipeline.page.models import Models
from pipeline.page.samples import Samples
from pipeline.server import HOST
from stages.common import StagePaths

EXAMPLES = 6
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; frame-ancestors 'self'"
)
"""What the browser may load: from this server alone, whatever Gradio's pages name."""
_HERE = Path(__file__).parent
_FONT = ["system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif"]


class _Policy:
    """Puts `POLICY` into the head of every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["content-security-policy"] = POLICY
            await send(message)

        await self._app(scope, receive, sent)


def build(models: Models | None, values: Values | None, *, stage: str | None, folder: Path) -> gr.Blocks:
    """The page, not served yet.

    Args:
        models: to ask; None: only samples are shown.
        values: of the checkout; None outside of one.
        stage: whose samples come first; None: the first stage's that has made something.
        folder: to keep the examples' pictures in.

    Raises:
        ValueError: there are no samples of `stage`, or none at all and no models either.
    """
    samples = None if values is None else Samples(values)
    made = [] if samples is None else samples.stages()
    if models is None and (not made or stage not in (None, *made)):
        what = f"{stage} has made nothing to look at" if made else "there is nothing to look at yet; `perceptio repro` makes it"
        raise ValueError(what + (f"; there are {', '.join(made)}" if made else ""))
    examples = [] if models is None or values is None else _examples(values, folder=folder)
    with gr.Blocks(title="Perceptio", analytics_enabled=False) as page:
        unseen = TEMPLATES.get_template("unseen.html").render(questions=[question for _, question in examples])
        gr.HTML(unseen, elem_id="unseen", apply_default_css=False)
        with gr.Tabs():
            if models is not None:
                with gr.Tab("Ask"):
                    ask_tab(models, None if values is None else Questions(values), examples=examples)
            if samples is not None and made:
                with gr.Tab("Look at the data") as tab:
                    look_tab(page.load if models is None else tab.select, samples, stage=stage)
    return page


def launch(page: gr.Blocks, *, port: int) -> None:
    """Serve the page on loopback, from threads of its own."""
    page.queue(default_concurrency_limit=4).launch(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        theme=_theme(),
        css_paths=_HERE / "page.css",
        head=f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        app_kwargs={"middleware": [Middleware(_Policy)]},
    )


def _theme() -> gr.themes.Base:
    """Gradio's own, with fonts that are at hand, and with texts whose contrast is at least 4.5 in both schemes."""
    mono = ["ui-monospace", "DejaVu Sans Mono", "monospace"]
    soft, soft_dark = "*neutral_600", "*neutral_300"
    return gr.themes.Base(primary_hue="pink", neutral_hue="stone", font=_FONT, font_mono=mono).set(
        color_accent="*primary_700",
        body_text_color_subdued=soft,
        body_text_color_subdued_dark=soft_dark,
        block_label_text_color=soft,
        block_label_text_color_dark=soft_dark,
        block_title_text_color=soft,
        block_title_text_color_dark=soft_dark,
        block_info_text_color=soft,
        block_info_text_color_dark=soft_dark,
        input_placeholder_color=soft,
        input_placeholder_color_dark=soft_dark,
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )


def _examples(values: Values, *, folder: Path) -> list[tuple[Path, str]]:
    """Pictures and questions that the last evaluation kept for the report, copied to where Gradio may read them."""
    paths = StagePaths(values.profile)
    file = paths.out("evaluate", values.plain["active"][0]) / "panels.jsonl"
    if not file.is_file():
        return []
    root = data_root(values.section("sources", SourcesParams), paths.made("sources"))
    found = []
    for number, row in enumerate(spread(read_jsonl(file, keys=("image", "question")), EXAMPLES)):
        copy = folder / f"example-{number}.png"
        open_image(root / inside("", row["image"], named_in=file)).save(copy)
        found.append((copy, str(row["question"])))
    return found

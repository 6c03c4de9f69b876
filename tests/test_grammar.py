import random

import pytest
import torch

from perceptio_core.grammar import Grammar, Role, strip_perception
from perceptio_core.model.decoding import GrammarLogitsProcessor
from perceptio_core.vocabulary import Vocabulary

# ids: 0-4 text, 5 an image placeholder, 6 end, then the added tokens
END = 6
VOCABULARY = Vocabulary(seg=7, depth_start=8, first_code=9, num_codes=3, depth_end=12)
SIZE = 13
TEXT = {0, 1, 2, 3, 4}
CODES = {9, 10, 11}
SEG, START, CLOSE = 7, 8, 12
PAPER = Grammar(depth_tokens=2)
DEPTH_FIRST = Grammar(order=("depth", "segmentation"), depth_tokens=2)


def test_pieces_with_roles_in_the_papers_order():
    assert PAPER.pieces(masks=2, depth_codes=[2, 0], answer="yes") == [
        (Role.SEG, "[SEG]"),
        (Role.SEG, "[SEG]"),
        (Role.DEPTH_START, "<depth_start>"),
        (Role.DEPTH_CODE, "<depth_2>"),
        (Role.DEPTH_CODE, "<depth_0>"),
        (Role.DEPTH_END, "<depth_end>"),
        (Role.ANSWER, "yes"),
    ]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (("segmentation", "depth"), "[SEG]<depth_start><depth_1><depth_1><depth_end>no"),
        (("depth", "segmentation"), "<depth_start><depth_1><depth_1><depth_end>[SEG]no"),
        (("segmentation",), "[SEG]no"),
        (("depth",), "<depth_start><depth_1><depth_1><depth_end>no"),
        ((), "no"),
    ],
)
def test_order_and_switches(order, expected):
    assert Grammar(order=order, depth_tokens=2).render(masks=1, depth_codes=[1, 1], answer="no") == expected


def test_a_span_may_be_absent():
    assert PAPER.render(masks=0, depth_codes=None, answer="no") == "no"
    assert PAPER.pieces(masks=0, depth_codes=None, answer="") == []


def test_refuses_impossible_grammars_and_wrong_lengths():
    with pytest.raises(ValueError, match="at most once"):
        Grammar(order=("depth", "depth"), depth_tokens=2)
    with pytest.raises(ValueError, match="at least 1"):
        Grammar(depth_tokens=0)
    with pytest.raises(ValueError, match="holds 2 codes, got 3"):
        PAPER.pieces(masks=0, depth_codes=[1, 1, 1], answer="")


@pytest.mark.parametrize(
    ("raw", "stripped"),
    [
        ("[SEG]<depth_start><depth_1><depth_22><depth_end>yes", "yes"),
        ("<depth_start><depth_1><depth_2>", ""),
        ("[SEG] [SEG] The red <box> [SEGMENT]", "The red <box> [SEGMENT]"),
        ("yes <depth_3> <depth_end>", "yes"),
        ("<depth_start> <depth_1> <depth_end> (B)", "(B)"),
        ("plain", "plain"),
    ],
)
def test_strip_perception(raw, stripped):
    assert strip_perception(raw) == stripped


def test_parse_takes_apart_what_render_wrote():
    parsed = PAPER.parse([SEG, SEG, START, 11, 9, CLOSE, 1, 2, END, 0, 0], vocabulary=VOCABULARY, end_id=END)
    assert (parsed.masks, parsed.depth_codes, parsed.text_ids, parsed.ended) == (2, (2, 0), (1, 2), True)
    parsed = DEPTH_FIRST.parse([START, 9, 9, CLOSE, SEG, 1], vocabulary=VOCABULARY, end_id=END)
    assert (parsed.masks, parsed.depth_codes, parsed.text_ids, parsed.ended) == (1, (0, 0), (1,), False)
    cut = PAPER.parse([START, 9], vocabulary=VOCABULARY, end_id=END)
    assert cut.depth_codes is None
    assert not cut.ended


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([START, 9, 1, CLOSE], "position 2: expected a depth code"),
        ([START, 9, 9, 9], "position 3: expected <depth_end>"),
        ([START, 9, END], "ends inside a depth span"),
        ([1, SEG], "position 1: perception token 7 is out of order"),
        ([START, 9, 9, CLOSE, SEG], "position 4: perception token 7 is out of order"),
        ([9, 1], "position 0: perception token 9"),
    ],
)
def test_parse_refuses_other_sequences(ids, message):
    with pytest.raises(ValueError, match=message):
        PAPER.parse(ids, vocabulary=VOCABULARY, end_id=END)


def admitted(answer, *, grammar=PAPER, **options):
    processor = GrammarLogitsProcessor(
        grammar=grammar, vocabulary=VOCABULARY, prompt_length=2, end_id=END, never=[5], **{"max_text_tokens": 9} | options
    )
    scores = processor(torch.tensor([[3, 3, *answer]]), torch.zeros(1, SIZE))
    return set(torch.isfinite(scores[0]).nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([], TEXT | {END, SEG, START}),
        ([SEG], TEXT | {END, SEG, START}),
        ([SEG, START], CODES),
        ([START, 9], CODES),
        ([START, 9, 9], {CLOSE}),
        ([START, 9, 9, CLOSE], TEXT | {END}),
        ([1], TEXT | {END}),
        ([SEG, 1], TEXT | {END}),
    ],
)
def test_the_model_decides(answer, expected):
    assert admitted(answer) == expected


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ([], {"segment": True}, {SEG}),
        ([SEG], {"segment": True}, TEXT | {END, SEG, START}),
        ([], {"depth": True}, {SEG, START}),
        ([SEG], {"depth": True}, {SEG, START}),
        ([], {"depth": True, "segment": False}, {START}),
        ([], {"segment": True, "depth": True}, {SEG}),
        ([SEG], {"segment": True, "depth": True}, {SEG, START}),
        ([SEG, SEG], {"segment": True, "depth": True, "max_masks": 2}, {START}),
        ([], {"segment": False, "depth": False}, TEXT | {END}),
        ([SEG, SEG], {"max_masks": 2}, TEXT | {END, START}),
        ([1, 2], {"max_text_tokens": 2}, {END}),
        ([SEG, 1], {"max_text_tokens": 2}, TEXT | {END}),
        ([], {"max_text_tokens": 0}, {END, SEG, START}),
    ],
)
def test_the_caller_decides(answer, options, expected):
    assert admitted(answer, **options) == expected


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ([], {}, TEXT | {END, SEG, START}),
        ([START, 9, 9, CLOSE], {}, TEXT | {END, SEG}),
        ([SEG], {}, TEXT | {END, SEG}),
        ([], {"depth": True, "segment": True}, {START}),
        ([START, 9, 9, CLOSE], {"depth": True, "segment": True}, {SEG}),
        ([], {"segment": True}, {SEG, START}),
    ],
)
def test_depth_first(answer, options, expected):
    assert admitted(answer, grammar=DEPTH_FIRST, **options) == expected


def test_spans_that_the_model_was_trained_without_cannot_be_forced():
    control = Grammar(order=(), depth_tokens=2)
    assert admitted([], grammar=control) == TEXT | {END}
    with pytest.raises(ValueError, match="cannot force a depth span"):
        admitted([], grammar=control, depth=True)


@pytest.mark.parametrize("grammar", [PAPER, DEPTH_FIRST, Grammar(order=("depth",), depth_tokens=2)])
@pytest.mark.parametrize("depth", [None, True, False])
def test_random_walks_of_a_batch_always_parse(grammar, depth):
    draw = random.Random(0)
    processor = GrammarLogitsProcessor(
        grammar=grammar, vocabulary=VOCABULARY, prompt_length=1, end_id=END, depth=depth, max_masks=3, max_text_tokens=4
    )
    rows = torch.zeros(40, 1, dtype=torch.int64)
    for _ in range(14):
        scores = processor(rows, torch.zeros(len(rows), SIZE))
        choice = [draw.choice(row.isfinite().nonzero().flatten().tolist()) for row in scores]
        ended = (rows == END).any(1)
        rows = torch.cat([rows, torch.where(ended, END, torch.tensor(choice))[:, None]], dim=1)
    parsed = [grammar.parse(row.tolist(), vocabulary=VOCABULARY, end_id=END) for row in rows[:, 1:]]
    assert all(p.ended and p.masks <= 3 and len(p.text_ids) <= 4 for p in parsed)
    assert {p.depth_codes is not None for p in parsed} == ({True, False} if depth is None else {depth})

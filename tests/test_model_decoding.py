import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LogitsProcessorList, StaticCache

from perceptio_core.model import decoding, depth_draft
from perceptio_core.model.decoding import GrammarLogitsProcessor, decode
from perceptio_core.model.inference import Perceptor
from tiny import TinySample, lively, tiny_perceptio

QUESTIONS = ["Which point is the closest to the camera?", "yes", "Please segment the ball.", "(A) or (B)?"]
LONGEST_TEXT = 5


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny model that writes in float64, so that passes of different shapes differ by less than any two logits."""
    model, processor = tiny_perceptio(tmp_path_factory.mktemp("tiny"), tied=False)
    lively(model).vlm.double()
    return model.eval(), processor


@pytest.fixture(scope="module")
def prompts(parts):
    return parts[1].prompts(pictures(), QUESTIONS)


def pictures():
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in [(40, 48), (32, 32), (20, 60), (9, 9)]
    ]


def constraint(parts, **options):
    model, processor = parts
    return GrammarLogitsProcessor(
        grammar=model.config.grammar,
        vocabulary=model.config.vocabulary,
        end_id=model.config.end_token_id,
        never=processor.image_token_ids,
        **{"max_text_tokens": LONGEST_TEXT} | options,
    )


@torch.no_grad()
def plain_generate(parts, prompts, *, processors, longest):
    """The answers of `transformers`' own greedy search, cut after their end."""
    end = parts[0].config.end_token_id
    sequences = parts[0].vlm.generate(
        input_ids=prompts.input_ids_BT,
        attention_mask=prompts.attention_mask_BT,
        pixel_values=prompts.pixels_PCHW.double(),
        logits_processor=LogitsProcessorList(processors),
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )
    rows = sequences[:, prompts.input_ids_BT.shape[1] :].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


@pytest.mark.parametrize("depth", [None, True, False])
@pytest.mark.parametrize("segment", [None, True, False])
def test_the_answers_are_those_of_transformers_search_over_the_same_choices(parts, prompts, monkeypatch, segment, depth):
    wishes = {"segment": segment, "depth": depth, "max_masks": 3}
    peer = constraint(parts, prompt_length=prompts.input_ids_BT.shape[1], **wishes)
    expected = plain_generate(parts, prompts, processors=[peer], longest=peer.longest)
    assert len(set(map(tuple, expected))) == len(QUESTIONS), "answers that are all the same would prove little"
    for guesses in (0, 4, 8, 12, 96):  # over four rows: none, part of a span, all of it
        monkeypatch.setattr(depth_draft, "GUESSES_A_PASS", guesses)
        assert decode(parts[0].vlm, prompts, constraint=constraint(parts, **wishes)).ids == expected


def full_pass(parts, prompts, row, answer):
    """Last hidden states (T, D) at the answer's tokens, from one pass over the unpadded sequence."""
    prompt = prompts.input_ids_BT[row][prompts.attention_mask_BT[row] > 0]
    ids = torch.cat([prompt, torch.tensor(answer)])
    pixels = prompts.pixels_PCHW[row][None].double()
    with torch.no_grad():
        return parts[0].vlm.model(input_ids=ids[None], pixel_values=pixels).last_hidden_state[0, len(prompt) :]


@pytest.mark.parametrize(
    ("wishes", "passes"),
    [
        # <depth_start> goes with the prompt, each code but the last costs a pass, <depth_end> and the end cost none
        ({"segment": False, "depth": True, "max_text_tokens": 0}, 4),
        # the one mask, its end, and the pass that gives the state at [SEG], all with the prompt
        ({"segment": True, "depth": False, "max_text_tokens": 0, "max_masks": 1}, 1),
        # both spans: [SEG] and <depth_start> go with the prompt
        ({"segment": True, "depth": True, "max_text_tokens": 0, "max_masks": 1}, 4),
        # nothing is left to choose: given codes are written down, and there is no text for which to read them
        ({"segment": False, "depth": True, "max_text_tokens": 0, "depth_codes_BN": torch.zeros(4, 4, dtype=torch.int64)}, 0),
        ({"segment": False, "depth": False, "max_text_tokens": 0}, 0),
    ],
)
def test_without_guesses_only_choices_cost_a_pass(parts, prompts, monkeypatch, wishes, passes):
    monkeypatch.setattr(depth_draft, "GUESSES_A_PASS", 0)
    decoded = decode(parts[0].vlm, prompts, constraint=constraint(parts, **wishes))
    assert decoded.passes == [passes] * len(QUESTIONS)
    assert all(row[-1] == parts[0].config.end_token_id for row in decoded.ids)


def test_a_text_costs_one_pass_a_token_after_given_codes(parts, prompts):
    codes_BN = torch.tensor([[0, 1, 2, 3], [5, 5, 5, 5], [4, 3, 2, 1], [0, 0, 0, 1]])
    decoded = decode(parts[0].vlm, prompts, constraint=constraint(parts, segment=False, depth=True, depth_codes_BN=codes_BN))
    vocabulary = parts[0].config.vocabulary
    texts = [row[6:] for row in decoded.ids]
    assert [[vocabulary.codes(torch.tensor(row[1:5])).tolist()] for row in decoded.ids] == [[row] for row in codes_BN.tolist()]
    # the end is chosen like a token of the text, except where the text has all its tokens
    assert decoded.passes == [min(len(text), LONGEST_TEXT) for text in texts]
    for row, answer in enumerate(decoded.ids):
        logits_TV = parts[0].vlm.lm_head(full_pass(parts, prompts, row, answer))
        admits = constraint(parts, segment=False, depth=True, depth_codes_BN=codes_BN[row][None])
        for place in range(6, len(answer)):
            allowed_V = admits.admitted(torch.tensor([answer[:place]]), size=logits_TV.shape[1])[0]
            assert logits_TV[place - 1].masked_fill(~allowed_V, -torch.inf).argmax() == answer[place]


@pytest.mark.parametrize(
    "wishes", [{"segment": True}, {"segment": True, "depth": True}, {"segment": True, "max_text_tokens": 0}]
)
def test_the_states_at_seg_are_those_of_a_full_pass(parts, prompts, wishes):
    decoded = decode(parts[0].vlm, prompts, constraint=constraint(parts, max_masks=2, **wishes))
    for row, answer in enumerate(decoded.ids):
        states_TD = full_pass(parts, prompts, row, answer)
        expected = states_TD[torch.tensor(answer) == parts[0].config.vocabulary.seg]
        assert len(expected) >= 1
        torch.testing.assert_close(decoded.seg_states[row], expected, rtol=1e-9, atol=1e-9)


def test_a_static_cache_would_give_the_same_answers(parts, prompts, monkeypatch):
    """docs/results.md says why there is none. It cannot forget guesses."""
    monkeypatch.setattr(depth_draft, "GUESSES_A_PASS", 0)
    expected = decode(parts[0].vlm, prompts, constraint=constraint(parts, segment=True, depth=True))
    config = parts[0].vlm.config.text_config
    monkeypatch.setattr(decoding, "DynamicCache", lambda: StaticCache(config=config, max_cache_len=200))
    found = decode(parts[0].vlm, prompts, constraint=constraint(parts, segment=True, depth=True))
    assert found.ids == expected.ids
    torch.testing.assert_close(found.seg_states, expected.seg_states, rtol=1e-9, atol=1e-9)


def test_no_pass_asks_cudnn_for_a_plan(parts, prompts):
    """Its plans are for one length, and the cache has another at each pass; other work may have it before and after."""
    allowed = []
    hook = (
        parts[0]
        .vlm.model.language_model.layers[0]
        .self_attn.register_forward_hook(lambda *_: allowed.append(torch.backends.cuda.cudnn_sdp_enabled()))
    )
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        decoded = decode(parts[0].vlm, prompts, constraint=constraint(parts, depth=True))
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        hook.remove()
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert allowed == [False] * max(decoded.passes)


def test_codes_that_do_not_fit_are_refused(parts):
    with pytest.raises(ValueError, match=r"holds 4 codes, the given ones are \(2, 3\)"):
        constraint(parts, depth_codes_BN=torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="depth codes are 0 to 5"):
        constraint(parts, depth_codes_BN=torch.full((1, 4), 6))


def test_a_model_that_obeys_writes_the_same_without_constraint(tmp_path, monkeypatch):
    """It is trained on four samples until its own greedy answers obey: with both spans, with one, with none."""
    model, processor = tiny_perceptio(tmp_path, tied=False, seg_ce=0.0, seg_dice=0.0, reconstruction=0.0)
    samples = [
        TinySample(
            key=str(number),
            image=picture,
            turns=[(question, answer)],
            masks=[np.ones((picture.height, picture.width), bool)] * masks,
            mask_turns=[0] * masks,
            depth_codes=codes,
        )
        for number, (picture, question, answer, masks, codes) in enumerate(
            zip(
                pictures(),
                QUESTIONS,
                ["(A)", "no", "ball", "(B)"],
                [0, 9, 1, 0],
                [[0, 1, 2, 3], None, [5, 4, 5, 4], None],
                strict=True,
            )
        )
    ]
    batch = processor.collate(samples)
    optimizer = torch.optim.Adam(model.vlm.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(150):
        optimizer.zero_grad()
        model(batch)["total"].backward()
        optimizer.step()
    again = Perceptor(model=model, processor=processor).predict(pictures(), QUESTIONS, max_new_tokens=LONGEST_TEXT)
    model.vlm.double()
    parts = (model.eval(), processor)
    prompts = processor.prompts(pictures(), QUESTIONS)
    free = plain_generate(parts, prompts, processors=[], longest=40)
    told = decode(model.vlm, prompts, constraint=constraint(parts))
    assert told.ids == free
    monkeypatch.setattr(depth_draft, "GUESSES_A_PASS", 0)
    slow = decode(model.vlm, prompts, constraint=constraint(parts))
    assert slow.ids == free
    assert all(fast <= one_by_one for fast, one_by_one in zip(told.passes, slow.passes, strict=True))
    written = [processor.decode(row[:-1]) for row in told.ids]
    assert written == [
        model.config.grammar.render(masks=len(s.masks), depth_codes=s.depth_codes, answer=s.turns[0][1]) for s in samples
    ]
    assert [answer.raw for answer in again] == written


class TestDepthDraft:
    """By hand: a map of 2 x 2 codes out of 6, two rows, of which one stands inside its span."""

    @pytest.fixture
    def vocabulary(self, parts):
        return parts[0].config.vocabulary

    @pytest.fixture
    def draft(self, vocabulary):
        return depth_draft.DepthDraft(rows=2, depth_tokens=4, vocabulary=vocabulary, device=torch.device("cpu"))

    def answers(self, vocabulary, *codes):
        inside = [vocabulary.depth_start, *(vocabulary.first_code + code for code in codes)]
        answer_BT = torch.full((2, 10), decoding.NOTHING)
        answer_BT[0, : len(inside)] = torch.tensor(inside)
        answer_BT[1, 0] = 7
        return answer_BT, torch.tensor([len(inside), 1])

    def guessed(self, draft, vocabulary, *codes):
        answer_BT, length_B = self.answers(vocabulary, *codes)
        filled_BT, guess_BT = draft.fill(answer_BT, length_B)
        assert not guess_BT[1].any()
        assert torch.equal(filled_BT[~guess_BT], answer_BT[~guess_BT])
        places = guess_BT[0].nonzero()[:, 0].tolist()
        assert places == list(range(length_B[0], length_B[0] + len(places)))
        return [
            vocabulary.codes(token).item() if token != vocabulary.depth_end else "end" for token in filled_BT[0][guess_BT[0]]
        ]

    def learn(self, draft, vocabulary, *, settled, guesses, likeliest):
        ids = [vocabulary.depth_end if guess == "end" else vocabulary.first_code + guess for guess in guesses]
        logits_BWK = torch.nn.functional.one_hot(torch.tensor([likeliest, [0] * len(likeliest)]), 6).float()
        right_B = draft.learn(
            logits_BWK,
            first_B=torch.tensor([settled, 0]),
            guesses_BW=torch.tensor([ids, [0] * len(ids)]),
            count_B=torch.tensor([len(ids), 0]),
        )
        assert right_B[1] == 0
        return int(right_B[0])

    def test_first_a_ramp_from_far_to_near_and_the_end(self, draft, vocabulary):
        assert self.guessed(draft, vocabulary) == [0, 2, 3, 5, "end"]

    def test_what_a_pass_said_is_the_next_guess(self, draft, vocabulary):
        guesses = self.guessed(draft, vocabulary)
        # The first is right; the second should be 1; what is said behind it stands on a wrong code, and is the better guess.
        assert self.learn(draft, vocabulary, settled=0, guesses=guesses, likeliest=[0, 1, 4, 4, 0]) == 1
        assert self.guessed(draft, vocabulary, 0, 1) == [4, 4, "end"]
        assert self.learn(draft, vocabulary, settled=2, guesses=[4, 4, "end"], likeliest=[4, 4, 0]) == 3

    def test_a_place_that_was_not_looked_at_is_guessed_from_above(self, draft, vocabulary):
        draft.window = 2
        assert self.guessed(draft, vocabulary) == [0, 2]
        assert self.learn(draft, vocabulary, settled=0, guesses=[0, 2], likeliest=[3, 1]) == 0
        assert self.guessed(draft, vocabulary, 3) == [1, 3]

    def test_a_large_batch_does_not_guess(self, vocabulary):
        rows = depth_draft.MOST_ROWS + 1
        draft = depth_draft.DepthDraft(rows=rows, depth_tokens=4, vocabulary=vocabulary, device=torch.device("cpu"))
        answer_BT = torch.full((rows, 10), decoding.NOTHING)
        answer_BT[:, 0] = vocabulary.depth_start
        _, guess_BT = draft.fill(answer_BT, torch.ones(rows, dtype=torch.int64))
        assert not guess_BT.any()

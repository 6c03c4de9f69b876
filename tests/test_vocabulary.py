import pytest
import torch
from transformers import InternVLForConditionalGeneration

from perceptio_core.vocabulary import APART, Vocabulary, add_rows, added_tokens
from tiny import tiny_internvl, tiny_tokenizer


def test_tokens_in_the_order_of_their_ids():
    assert added_tokens(num_codes=2) == ["[SEG]", "<depth_start>", "<depth_0>", "<depth_1>", "<depth_end>"]
    with pytest.raises(ValueError, match="at least 1"):
        added_tokens(num_codes=0)


def test_ids_follow_the_old_vocabulary():
    tokenizer = tiny_tokenizer()
    old = len(tokenizer)
    vocabulary = Vocabulary.add_to(tokenizer, num_codes=4)
    assert vocabulary.ids == list(range(old, old + 7)) == tokenizer.convert_tokens_to_ids(added_tokens(num_codes=4))
    assert vocabulary == Vocabulary.add_to(tokenizer, num_codes=4), "a second time changes nothing"
    assert tokenizer.encode("a<depth_3>[SEG]", add_special_tokens=False)[1:] == [vocabulary.first_code + 3, vocabulary.seg]
    assert vocabulary.id_of["<depth_end>"] == vocabulary.depth_end
    codes = torch.tensor([0, 3])
    assert torch.equal(vocabulary.codes(vocabulary.code_ids(codes)), codes)
    assert vocabulary.is_code(torch.tensor([old + 1, old + 2, old + 5, old + 6])).tolist() == [False, True, True, False]


def test_refuses_codes_that_are_not_contiguous_or_another_codebook():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<depth_1>"], special_tokens=True)
    with pytest.raises(ValueError, match="contiguous"):
        Vocabulary.add_to(tokenizer, num_codes=3)
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"lacks 5 perception tokens, the first is '\[SEG\]'"):
        Vocabulary.of(tokenizer, num_codes=2)
    Vocabulary.add_to(tokenizer, num_codes=3)
    with pytest.raises(ValueError, match="the codebook has 2 codes"):
        Vocabulary.of(tokenizer, num_codes=2)


@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_and_old_logits_stay_equal_to_the_bit(tmp_path, tied):
    model = InternVLForConditionalGeneration.from_pretrained(tiny_internvl(tmp_path, tied=tied)).eval()
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer.encode("Which point is the closest?")])
    old, before = len(tokenizer), model(input_ids=ids).logits
    vocabulary = Vocabulary.add_to(tokenizer, num_codes=4)
    state = torch.random.get_rng_state()
    add_rows(model, vocabulary=vocabulary, vocabulary_size=len(tokenizer), seed=1)
    assert torch.equal(torch.random.get_rng_state(), state), "draws from a generator of its own"
    after = model(input_ids=ids).logits
    assert after.shape[-1] == len(tokenizer)
    assert torch.equal(after[..., :old], before)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (embedding is head) == tied
    for weight in (embedding, head):
        new = weight.detach()[old:]
        assert len(new.unique(dim=0)) == len(vocabulary.ids), "new tokens start apart"
        assert 0.5 < float(new.std() / weight.detach()[:old].std()) < 2


def test_rows_that_the_base_padded_are_kept(tmp_path):
    model = InternVLForConditionalGeneration.from_pretrained(tiny_internvl(tmp_path))
    tokenizer = tiny_tokenizer()
    model.resize_token_embeddings(400)
    vocabulary = Vocabulary.add_to(tokenizer, num_codes=4)
    add_rows(model, vocabulary=vocabulary, vocabulary_size=len(tokenizer))
    assert model.get_input_embeddings().weight.shape[0] == 400


@pytest.mark.parametrize("tied", [True, False])
def test_codes_start_between_the_words_for_their_levels(tmp_path, tied):
    model = InternVLForConditionalGeneration.from_pretrained(tiny_internvl(tmp_path, tied=tied))
    tokenizer = tiny_tokenizer()
    words = [tokenizer.convert_tokens_to_ids(word) for word in "abc"]
    before = [weight.detach().clone() for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)]
    vocabulary = Vocabulary.add_to(tokenizer, num_codes=401)
    add_rows(model, vocabulary=vocabulary, vocabulary_size=len(tokenizer), code_word_ids=words, seed=1)
    for old, weight in zip(before, (model.get_input_embeddings().weight, model.get_output_embeddings().weight), strict=True):
        codes = weight.detach()[vocabulary.first_code :][:401]
        expected = {0: old[words[0]], 100: (old[words[0]] + old[words[1]]) / 2, 200: old[words[1]], 400: old[words[2]]}
        spread = APART * old.std(0)
        for code, row in expected.items():
            # 25 codes to each side are moved by at most 1/8 of the way to the next word
            near = codes[max(0, code - 25) : code + 26]
            slope = (old[words[1]] - old[words[0]]).abs().max() + (old[words[2]] - old[words[1]]).abs().max()
            assert (near.mean(0) - row).abs().max() < slope / 16 + 5 * spread.max() / len(near) ** 0.5
        assert len(codes.unique(dim=0)) == 401
        assert torch.equal(weight.detach()[: len(old)], old)
    seg = model.get_input_embeddings().weight.detach()[vocabulary.seg]
    assert min((seg - before[0][word]).norm() for word in words) > (before[0].std(0)).norm()

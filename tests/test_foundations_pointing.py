"""The helper loss of the language phase: which words point where, and its attention is the model's own."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import InternVLForConditionalGeneration

from perceptio_core.data.shards.markers import Marker
from perceptio_core.foundations.pointing import GATHERING, HEADS, Attention, pointers, pointing_loss
from perceptio_core.scenes.view import look
from tiny import tiny_internvl


def test_names_point_at_the_patches_that_show_them():
    objects = [
        SimpleNamespace(shape="box", color="red", material="matte", role="object"),
        SimpleNamespace(shape="cone", color="blue", material="shiny", role="object"),
    ]
    instances = np.zeros((128, 128), np.uint8)
    instances[16:32, 32:64] = 1  # patches 10 and 11
    instances[64:80, 64:80] = 2  # patch 36
    view = look(SimpleNamespace(objects=objects), SimpleNamespace(instances=instances))
    markers = [Marker(letter="B", x=100, y=20, inverse_depth=0.0)]  # column 6, row 1: patch 14

    def named(question):
        found = pointers(question, view=view, instances_HW=instances, markers=markers)
        words = [" ".join(question[begin:end] for begin, end in pointer.words) for pointer in found]
        return [(name, np.flatnonzero(pointer.patches).tolist()) for name, pointer in zip(words, found, strict=True)]

    assert named("Where is the marker B?") == [("B", [14])]
    assert named("Which point is whiter in the image, D or B?") == [("B", [14])], "there is no D"
    assert named("Which letter is at (6, 1)?") == [("6 1", [14])]
    assert named("What shape is the matte red object?") == [("matte red object", [10, 11])]
    assert named("Which object is at (6, 1)?") == [("6 1", [14])], "an object alone is no name"
    assert named("How many boxes are there?") == [("box", [10, 11])]
    assert named("Is the box left of the shiny cone in the image?") == [("box", [10, 11]), ("shiny cone", [36])]
    assert named("Is there a green ball in the image?") == [], "nothing bears the name"


def test_the_loss_reads_the_attention_of_the_model_itself(tmp_path):
    model = InternVLForConditionalGeneration.from_pretrained(
        tiny_internvl(tmp_path, hidden=64, layers=3), attn_implementation="eager"
    )
    torch.manual_seed(1)
    embeddings_BTD = torch.randn(2, 9, 64)
    with torch.no_grad():
        states = model.model.language_model(inputs_embeds=embeddings_BTD, output_attentions=True, output_hidden_states=True)
    wanted_MT = torch.zeros(2, 9, dtype=torch.bool)
    wanted_MT[0, [1, 4]] = wanted_MT[1, 2] = True
    wanted = Attention(row_M=torch.tensor([1, 0]), token_M=torch.tensor([6, 3]), wanted_MT=wanted_MT)
    loss, share = pointing_loss(model, states.hidden_states[GATHERING], wanted, layer=GATHERING)
    attention = states.attentions[GATHERING]
    shares = [float(attention[1, head, 6, [1, 4]].sum()) for head in HEADS]
    shares += [float(attention[0, head, 3, 2]) for head in HEADS]
    assert float(share) == pytest.approx(np.mean(shares), rel=1e-4)
    assert float(loss) == pytest.approx(-np.mean([math.log(value) for value in shares]), rel=1e-4)

"""Object descriptions in the answers to RefCOCO's expressions: from a captioner's file, and from people's other expressions."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from collecting import parted
from joint_inputs import PARAMS, train_samples
from perceptio_core.data.manifest.descriptions import described_turns
from perceptio_core.data.readers.refer import refer_records
from perceptio_core.data.records import SEGMENT_ANSWER, Record, segment_question
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.params.sources import DatasetParams

LEFT, RIGHT = ({"size": [8, 10], "counts": counts} for counts in ("a", "b"))


def record(expression, mask, answer=SEGMENT_ANSWER, **changes):
    fields = {
        "record_id": f"set/{expression}",
        "image": "k.png",
        "image_name": "k",
        "image_key": "k",
        "split": "train",
        "task": "referring",
        "turns": ((segment_question(expression), answer),),
        "expression": expression,
        "masks": (mask,),
        "source": "set",
    }
    return Record(**fields | changes)


def answers(records, known):
    return [answer for _, answer in described_turns(records, known=known)]


def test_an_object_is_described_by_its_longest_expression_that_is_not_asked():
    dog, brown, left = record("dog", LEFT), record("the brown dog", LEFT), record("left dog", LEFT)
    other = record("a very large cat on the right", RIGHT)
    known = [dog, brown, left, other]
    assert answers([dog], known) == ["Sure, here it is: the brown dog."]
    assert answers([dog, other], known) == ["Sure, here it is: the brown dog.", SEGMENT_ANSWER]
    assert answers([brown, dog], known) == ["Sure, here it is: left dog.", "Sure, here it is: the brown dog."]
    assert answers([left, brown, dog], known) == [
        SEGMENT_ANSWER,
        *(f"Sure, here it is: {text}." for text in ("left dog", "the brown dog")),
    ]
    assert answers([dog, record("The brown  Dog", LEFT)], known)[0] == "Sure, here it is: left dog.", "asked in other letters"
    assert answers([dog], ()) == [SEGMENT_ANSWER]
    questions = [question for question, _ in described_turns([dog, other], known=known)]
    assert questions == [segment_question("dog"), segment_question("a very large cat on the right")]


def test_answers_that_say_more_or_are_about_several_objects_stay():
    known = [record("the brown dog", LEFT), record("both dogs", LEFT, masks=(LEFT, RIGHT))]
    both = record("dogs", LEFT, masks=(LEFT, RIGHT))
    none = record("a bear", LEFT, masks=())
    talk = record("x", LEFT, task="conversation", turns=(("Where?", "Left."), ("Why?", SEGMENT_ANSWER)), masks=None)
    told = record("dog", LEFT, answer="<p> A dog </p>.")
    assert answers([both], known) == answers([none], known) == [SEGMENT_ANSWER]
    assert described_turns([talk], known=known) == talk.turns
    assert answers([told], known) == ["<p> A dog </p>."]


def write_refcoco(root):
    """References 3 and 4 on the left and the right half of a picture, with three sentences and one; 5 in the test split."""
    folder = root / "refcoco"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(folder / "images/COCO_train2014_000000000007.jpg")
    boxes = {1: (0, 32), 2: (32, 64)}
    annotations = [
        {"id": key, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": [[a, 0, b, 0, b, 48, a, 48]]}
        for key, (a, b) in boxes.items()
    ]
    images = [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 48, "width": 64}]
    said = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    (folder / "instances.json").write_text(json.dumps(said))
    refs = [
        {"ref_id": ref, "ann_id": ann, "image_id": 7, "split": split}
        | {"sentences": [{"sent_id": 10 * ref + i, "sent": text} for i, text in enumerate(texts)]}
        for ref, ann, split, texts in (
            (3, 1, "train", ("dog", "the brown dog", "left dog")),
            (4, 2, "train", ("right one",)),
            (5, 1, "testA", ("the secret of the test split, longer than all",)),
        )
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    return folder


def test_a_captioners_file_describes_references(tmp_path):
    folder = write_refcoco(tmp_path)
    path = folder / "descriptions.jsonl"
    path.write_text('{"ref_id": 3, "description": "A brown dog sits on the left. ", "model": "any"}\n')
    where = {"source": "r", "split": "train", "split_by": None, "root": tmp_path, "images": None}
    records, _ = parted(refer_records, folder, descriptions=path, **where)
    assert [(one.record_id, one.turns[0][1]) for one in records] == [
        ("r/3/30", "Sure, here it is: A brown dog sits on the left."),
        ("r/3/31", "Sure, here it is: A brown dog sits on the left."),
        ("r/3/32", "Sure, here it is: A brown dog sits on the left."),
        ("r/4/40", SEGMENT_ANSWER),
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"ref_id": 3', "line 2: not JSON: Expecting"),
        ("[3]", "line 2: the line is not an object"),
        ('{"ref_id": "3", "description": "x"}', "line 2: ref_id must be a whole number of 64 bits, got '3'"),
        ('{"ref_id": 3, "description": " . "}', "line 2: description must be a text that is not empty"),
        ('{"ref_id": 3}', "line 2: description must be a text that is not empty, got None"),
        ('{"ref_id": 4, "description": "x"}', "line 2: ref_id 4 is described twice"),
        (
            '{"ref_id": 3, "description": "' + "x" * 10_000_000 + '"}',
            "line 2: a description of 10,000,000 characters; allowed are 1,000",
        ),
        ('"\\ud800"' + "[" * 100_000, "line 2: "),
    ],
)
def test_bad_lines_of_a_captioner_cost_one_description_each(tmp_path, line, told):
    folder = write_refcoco(tmp_path)
    path = folder / "d.jsonl"
    where = {"source": "r", "split": "train", "split_by": None, "root": tmp_path, "images": None}
    path.write_text('\ufeff{"ref_id": 4, "description": "x"}\n' + line + "\n", encoding="utf-8")
    records, (refused,) = parted(refer_records, folder, descriptions=path, **where)
    assert refused.file == "refcoco/d.jsonl"
    assert refused.reason.startswith(told)
    assert len(refused.reason) < 200
    assert [one.turns[0][1] for one in records] == [*[SEGMENT_ANSWER] * 3, "Sure, here it is: x."]
    path.write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"d\.jsonl"):
        parted(refer_records, folder, descriptions=path, **where)


def test_descriptions_reach_the_shards_and_none_comes_from_a_test_split(tmp_path):
    write_refcoco(tmp_path)
    dataset = DatasetParams(name="refcoco", kind="refer", path="refcoco", split="train", images="refcoco/images")
    params = PARAMS.model_copy(update={"referring_per_image": None, "markers_per_image": 0, "describe_objects": True})
    slope_HW = np.linspace(1, 2, 48 * 64, dtype=np.float32).reshape(48, 64)
    _, samples, _ = train_samples(tmp_path, [dataset], params=params, depth_of=lambda _: slope_HW)
    referring = [sample for sample in samples if sample.task == "referring"]
    assert sorted(len(sample.turns) for sample in referring) == [2, 2]
    expressions = {segment_question(text): text for text in ("dog", "the brown dog", "left dog", "right one")}
    described = 0
    for sample in referring:
        for number, (question, answer) in enumerate(sample.turns):
            asked = {expressions[question] for question, _ in sample.turns[number:]}
            rest = {"dog", "the brown dog", "left dog"} - asked if expressions[question] != "right one" else set()
            assert answer == (f"Sure, here it is: {max(rest, key=len)}." if rest else SEGMENT_ANSWER)
            described += bool(rest)
    assert described >= 2


def test_by_default_nothing_is_described():
    assert not JointShardsParams.model_fields["describe_objects"].default

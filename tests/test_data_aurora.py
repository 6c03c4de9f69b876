"""AURORA's rows: golden ones in the published layout, what becomes of bad ones, and what the shards make of them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from collecting import parted
from joint_inputs import PARAMS, train_samples
from perceptio_core.data.loading.labels import readings
from perceptio_core.data.readers.aurora import aurora_records
from perceptio_core.data.records import DEPTH_MAP_QUESTION, Point
from perceptio_core.data.shards.markers import QUESTION
from perceptio_core.params.sources import DatasetParams

SPAN = "<DEPTH_START>" + "".join(f"<DEPTH_{7 * i % 128}>" for i in range(100)) + "<DEPTH_END>"
THINK = QUESTION + (
    "\nTo answer this question, let's think through it step by step, and we know the image is 336 x 336. First, what are the "
    "coordinates of points in the image? Second, what is the depth map for the image? Which point has a higher pixel value on "
    "the depth map? Remember, higher values indicate that the point is closer to the camera."
)
POINTS = "Point A is located at (x = 70 y = 201),Point B is located at (x = 251 y = 120)."
VERDICT = "Since point B has a higher pixel value on the depth map, the answer is that point B is closer to the camera."
THOUGHT = f"{POINTS}The depth map for the image is {SPAN}. {VERDICT}"
ADE, MARKED = "/gscratch/some/one/ADE20k/ADE_train_00000001.jpg", "/gscratch/some/one/ADE_blink/ADE_train_00000001.jpg"


def row(question, answer, image=ADE):
    said = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": "depth_0", "image": image, "conversations": said}


def write(folder, rows):
    """The file, and two pictures of the same name: without circles, and with."""
    for number, name in enumerate(("ADE20k", "ADE_blink")):
        (folder / "aurora/images" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (336, 336), (90 * number, 0, 0)).save(folder / "aurora/images" / name / "ADE_train_00000001.jpg")
    path = folder / "aurora/train.json"
    path.write_text(json.dumps(rows))
    return path


def read(folder, rows):
    return parted(aurora_records, write(folder, rows), source="aurora", split="train", root=folder, images="aurora/images")


def test_the_three_kinds_of_rows(tmp_path):
    spaced = SPAN.replace("><", "> <")
    rows = [
        row(DEPTH_MAP_QUESTION, SPAN),
        row(THINK, THOUGHT, MARKED),
        row(QUESTION, "(B)", MARKED),
        row("What is the depth map of the image?", spaced),  # the same, of a later epoch
        row(THINK, THOUGHT, MARKED),
    ]
    records, refused = read(tmp_path, rows)
    assert [(record.record_id, record.task, record.image, record.image_name) for record in records] == [
        ("aurora/0", "depth_map", "aurora/images/ADE20k/ADE_train_00000001.jpg", "ADE20k/ADE_train_00000001"),
        ("aurora/1", "marker", "aurora/images/ADE_blink/ADE_train_00000001.jpg", "ADE_blink/ADE_train_00000001"),
        ("aurora/2", "conversation", "aurora/images/ADE_blink/ADE_train_00000001.jpg", "ADE_blink/ADE_train_00000001"),
    ]
    assert [record.turns for record in records] == [
        ((DEPTH_MAP_QUESTION, ""),),
        ((THINK, f"{POINTS} {VERDICT}"),),
        ((QUESTION, "(B)"),),
    ]
    assert [record.points for record in records] == [(), (Point("A", 70, 201), Point("B", 251, 120)), ()]
    assert [(one.file, one.reason[:31]) for one in refused] == [("aurora/train.json", "2 rows say what an earlier row ")]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (row(DEPTH_MAP_QUESTION, SPAN.replace("<DEPTH_7>", "", 1)), "a depth span of 99 codes; AURORA's hold 100"),
        (row(DEPTH_MAP_QUESTION, SPAN.replace("<DEPTH_7>", "<DEPTH_128>", 1)), "'<DEPTH_128>' in a depth span; allowed are"),
        (row(DEPTH_MAP_QUESTION, "<DEPTH_START><DEPTH_TOKEN><DEPTH_END>"), "'<DEPTH_TOKEN>' in a depth span"),
        (row(DEPTH_MAP_QUESTION, SPAN.replace("<DEPTH_7>", "near", 1)), "'near' in a depth span"),
        (row(DEPTH_MAP_QUESTION, SPAN.removesuffix("<DEPTH_END>")), "the token <DEPTH_START> stands where no depth span is"),
        (row(DEPTH_MAP_QUESTION, SPAN + SPAN), "2 depth spans, allowed is one"),
        (row(THINK, THOUGHT + " <DEPTH_3>", MARKED), "the token <DEPTH_3> stands where no depth span is"),
        (row("How many beds?", "<PIXEL_1> <PIXEL_9>"), "the token <PIXEL_1> .* none of AURORA's depth tokens"),
        (row(THINK, f"The depth map for the image is {SPAN}. {VERDICT}", MARKED), r"where two points or more are.* has \[\]"),
        (row(THINK, THOUGHT.replace("Point B is", "Point A is"), MARKED), r"each once; this one has \['A', 'A'\]"),
        (row(QUESTION, "It is hard to say.", MARKED), "neither a depth span nor a letter"),
        (row(QUESTION, "x" * 10_000_000, MARKED), "an answer of 10,000,000 characters; allowed are 4,000"),
        (row(QUESTION, "<DEPTH_START>" * 300, MARKED), "the token <DEPTH_START>"),
        (row(QUESTION, "(B)", "/gscratch/elsewhere/ADE_train_00000001.jpg"), "no picture lies at aurora/images/elsewhere/ADE"),
        (row(QUESTION, "(B)", "../../aurora/images/ADE_blink/ADE_train_00000001.jpg"), "leads out of the image folder"),
        (row(QUESTION, "(B)", 7), "no object with an image"),
        ({"image": ADE}, "conversations must be a list"),
        (row(QUESTION, ""), "a question or an answer is empty"),
        ({"image": ADE, "conversations": 2 * row(QUESTION, "(B)")["conversations"]}, "one question and its answer, got 2"),
        ([1], "no object with an image"),
    ],
)
def test_bad_rows_are_refused_with_their_number(tmp_path, bad, told):
    records, refused = read(tmp_path, [row(DEPTH_MAP_QUESTION, SPAN), bad])
    assert len(records) == 1
    ((file, reason),) = [(one.file, one.reason) for one in refused]
    assert file == "aurora/train.json#1"
    assert len(reason) < 400
    assert re.search(told, reason), reason


@pytest.mark.parametrize("text", ['[{"image"', "{}", "[" * 100_000])
def test_a_file_that_is_no_list_is_an_error(tmp_path, text):
    path = write(tmp_path, [])
    path.write_text(text)
    with pytest.raises(ValueError, match=r"aurora/train\.json: "):
        parted(aurora_records, path, source="aurora", split="train", root=tmp_path, images=None)


def test_from_the_file_to_the_shard(tmp_path):
    """A marked picture has the codes of what it shows, its points, and no more circles; a plain one its codes on demand."""
    beyond = THOUGHT.replace("251", "336")
    write(tmp_path, [row(DEPTH_MAP_QUESTION, SPAN), row(THINK, THOUGHT, MARKED), row(THINK, beyond, MARKED)])
    slope_HW = np.linspace(1, 2, 336 * 336, dtype=np.float32).reshape(336, 336)
    found, samples, codebook = train_samples(
        tmp_path,
        [DatasetParams(name="aurora", kind="aurora", path="aurora/train.json", split="train", images="aurora/images")],
        params=PARAMS.model_copy(update={"depth_map_share": 1.0, "markers_per_image": 1, "marker_counts": (2,)}),
        depth_of=lambda image: slope_HW if "blink" in image.path else slope_HW.T,
    )
    assert [one.reason for one in found.quarantine] == ["point B at (336, 120) of an image of 336 x 336"]
    drawn = [sample for sample in samples if "/marker/" in sample.record_id]
    rest = {sample.record_id: sample for sample in samples if sample not in drawn}
    assert set(rest) == {"aurora/0", "aurora/1"}, "its depth map is there once, and none is made of the marked picture"
    assert {sample.image_key for sample in drawn} == {"aurora/ADE20k/ADE_train_00000001"}
    thought, codes = rest["aurora/1"], rest["aurora/0"]
    assert (thought.task, thought.turns) == ("marker", [(THINK, f"{POINTS} {VERDICT}")])
    assert (thought.points, thought.draw_points) == ([Point("A", 70, 201), Point("B", 251, 120)], False)
    assert (codes.task, codes.turns) == ("depth_map", [(DEPTH_MAP_QUESTION, "")])
    for sample, map_HW in ((thought, slope_HW), (codes, slope_HW.T)):
        assert sample.depth_codes == codebook.encode(codebook.normalise(map_HW)[None])[0].tolist()
    assert thought.depth_codes != codes.depth_codes
    cells = [thought.depth_codes[4 * down + across] for down, across in ((2, 0), (1, 2))]  # of 84 pixels each
    assert [code for _, code in sorted(readings(thought))] == cells

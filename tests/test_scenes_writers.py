"""The written world: read back by independent means, unchanged by workers, chunks and interruptions."""

import base64
import csv
import hashlib
import io
import json
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from perceptio_core.data.shards.markers import answer, sample_markers
from perceptio_core.evaluation.benchmarks.hardblink import HardBlink
from perceptio_core.evaluation.benchmarks.res import ReferringSegmentation
from perceptio_core.params.render import RenderParams
from perceptio_core.scenes import writers
from perceptio_core.scenes.layouts import hardblink, refer, scenes
from perceptio_core.scenes.render import render
from perceptio_core.scenes.view import look
from perceptio_core.scenes.world import SEEDS_PER_SPLIT, UNLIKE, USUAL, sample_scene, split_seed
from perceptio_core.scenes.writers import write_world

PARAMS = RenderParams(train=5, val=2, test=3, hardblink=2, mmbench=6, seedbench=5, mme=2)

MMBENCH_HEADER = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(root, seeds of all scenes that were rendered)."""
    root, seeds = tmp_path_factory.mktemp("world"), []

    def watched(seed, size, **options):
        seeds.append(seed)
        return sample_scene(seed, size, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "sample_scene", watched)
        write_world(root, params=PARAMS, workers=1)
    return root, seeds


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class PlainUnpickler(pickle.Unpickler):
    """Admits containers, strings and numbers; anything that needs an import is an error."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name}")


def test_bytes_do_not_depend_on_workers_or_chunks(written, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "CHUNK", 2)
    write_world(tmp_path / "again", params=PARAMS, workers=2)
    assert digests(tmp_path / "again") == digests(written[0])


def test_a_killed_run_goes_on_where_it_stood(written, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "CHUNK", 2)
    make, made = refer.make, []

    def failing(params, root, number):
        made.append(number)
        if made == [0, 1, 2, 3, 4]:
            raise KeyboardInterrupt
        return make(params, root, number)

    monkeypatch.setattr(refer, "make", failing)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path, params=PARAMS, workers=1)
    write_world(tmp_path, params=PARAMS, workers=1)
    assert made == [0, 1, 2, 3, 4, *range(4, 10)]
    assert digests(tmp_path) == digests(written[0])
    write_world(tmp_path, params=PARAMS, workers=1)  # finished: nothing is made again
    assert len(made) == 11


def test_a_folder_with_other_content_is_left_alone(written, tmp_path):
    with pytest.raises(ValueError, match="empty folder"):
        write_world(written[0], params=PARAMS.model_copy(update={"world": 1}), workers=1)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="empty folder"):
        write_world(tmp_path, params=PARAMS, workers=1)
    with pytest.raises(ValueError, match="workers"):
        write_world(tmp_path / "new", params=PARAMS, workers=0)


def test_no_scene_is_shared(written):
    seeds = written[1]
    assert len(set(seeds)) == len(seeds)
    splits = Counter(seed // SEEDS_PER_SPLIT for seed in seeds)
    assert (splits[0], splits[1]) == (PARAMS.train, PARAMS.val)
    others = [scenes.scene(PARAMS.model_copy(update={"world": 1}), split="train", block="refcoco", number=0).world.seed]
    assert not set(others) & set(seeds)
    with pytest.raises(ValueError, match="allowed"):
        scenes.scene(PARAMS, split="train", block="refcoco", number=scenes.BLOCK)


def test_refer_layout(written, capsys):
    folder = written[0] / "refcoco"
    coco = COCO(str(folder / "instances.json"))
    capsys.readouterr()
    with (folder / "refs(umd).p").open("rb") as file:
        refs = PlainUnpickler(file).load()
    assert len(coco.imgs) == 10
    assert Counter(coco.imgs[image]["file_name"][18] for image in coco.imgs) == {"1": 5, "2": 2, "3": 3}
    for number, image_id in enumerate(sorted(coco.imgs)[:5]):
        world = sample_scene(split_seed("train", number))
        rendering = render(world)
        picture = Image.open(folder / "images/mscoco/images/train2014" / coco.imgs[image_id]["file_name"])
        assert picture.size == (128, 128)
        masks = [coco.annToMask(annotation) for annotation in coco.imgToAnns[image_id]]
        objects = {seen.instance: seen for seen in look(world, rendering).objects}
        assert len(masks) == len(objects)
        assert all(any(np.array_equal(mask, rendering.instances == i) for mask in masks) for i in objects)
        for annotation, mask in zip(coco.imgToAnns[image_id], masks, strict=True):
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["area"] == mask.sum() >= 40
            assert annotation["bbox"] == box
    keys = {"image_id", "split", "sentences", "file_name", "category_id", "ann_id", "sent_ids", "ref_id"}
    split_of_image = {image["id"]: image["file_name"][18] for image in coco.imgs.values()}
    sent_ids = []
    for ref in refs:
        assert set(ref) == keys
        assert coco.anns[ref["ann_id"]]["image_id"] == ref["image_id"]
        assert coco.anns[ref["ann_id"]]["category_id"] == ref["category_id"]
        assert {"train": "1", "val": "2", "test": "3"}[ref["split"]] == split_of_image[ref["image_id"]]
        assert [s["sent_id"] for s in ref["sentences"]] == ref["sent_ids"]
        assert all(s["tokens"] == s["sent"].split() and s["raw"] == s["sent"] for s in ref["sentences"])
        sent_ids += ref["sent_ids"]
    assert sent_ids == list(range(len(sent_ids)))
    assert len({ref["ann_id"] for ref in refs}) == len(refs)
    assert (folder / "refs(umd).p").read_bytes()[:2] == b"\x80\x02"


def test_llava_layout(written):
    rows = json.loads((written[0] / "llava" / "train.json").read_text())
    assert len(rows) == PARAMS.train
    for row in rows:
        assert (written[0] / row["image"]).is_file()
        said = row["conversations"]
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert ["<image>" in turn["value"] for turn in said] == [True] + [False] * (len(said) - 1)
        assert said[0]["value"].startswith("<image>\n")


def test_hardblink_layout(written):
    folder = written[0] / "hardblink"
    points = {(row["subset"], row["question_id"]): row["points"] for row in jsonl(folder / "markers.jsonl")}
    assert len(points) == 6
    for n in (3, 4, 5):
        questions = jsonl(folder / "questions" / f"blink_{n}pointscenter_questions.jsonl")
        answers = jsonl(folder / "answers" / f"blink_{n}pointscenter_answers.jsonl")
        assert [row["question_id"] for row in questions] == [row["question_id"] for row in answers] == [0, 1]
        for question, told in zip(questions, answers, strict=True):
            assert set(question) == {"question_id", "image", "text", "category"}
            picture = np.asarray(Image.open(folder / "images" / f"blink{n}pointscenter" / question["image"]))
            assert picture.shape == (128, 128, 3)
            drawn = points[n, question["question_id"]]
            assert [p["letter"] for p in drawn] == list("ABCDE")[:n]
            assert told["text"][1] in "ABCDE"[:n]
            red = (picture == (255, 0, 0)).all(axis=2)
            for p in drawn:
                assert red[p["y"] - 4 : p["y"] + 5, p["x"] - 4 : p["x"] + 5].sum() >= 6


def test_the_hardblink_answer_is_the_nearest_point_of_the_scene(tmp_path):
    """The depth at the points, rendered anew, decides; the row itself holds no depth."""
    for number in range(6):
        row = hardblink.HARDBLINK.make(PARAMS, tmp_path, number)
        marked = np.asarray(
            Image.open(tmp_path / "hardblink/images" / f"blink{row['subset']}pointscenter/{row['question_id']}.png")
        )
        for attempt in range(scenes.TRIES):
            number_of_scene = row["question_id"] * scenes.TRIES + attempt
            one = scenes.scene(PARAMS, split="test", block=f"hardblink_{row['subset']}", number=number_of_scene)
            if (one.rendering.image == marked).all(axis=2).mean() > 0.5:
                break
        depths = {p["letter"]: one.rendering.depth[p["y"], p["x"]] for p in row["points"]}
        assert row["answer"] == f"({min(depths, key=depths.get)})"


def test_mmbench_layout(written):
    csv.field_size_limit(1 << 24)
    with (written[0] / "mmbench" / "mini.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert "\t".join(rows[0]) == MMBENCH_HEADER
    groups = {}
    for row in rows:
        groups.setdefault(int(row["index"]) % 1_000_000, []).append(row)
    assert len(groups) == PARAMS.mmbench
    for index, group in groups.items():
        options = [[row[letter] for letter in "ABCD" if row[letter]] for row in group]
        assert len(group) == len(options[0])  # as many rotations as options
        assert len({tuple(o) for o in options}) == len(group)
        assert len({row[row["answer"]] for row in group}) == 1
        assert sorted(row["answer"] for row in group) == list("ABCD")[: len(group)]
        assert Image.open(io.BytesIO(base64.b64decode(group[0]["image"]))).size == (128, 128)
        assert all(row["image"] == str(index) for row in group[1:])


def test_seedbench_layout(written):
    folder = written[0] / "seedbench"
    content = json.loads((folder / "SEED-Bench.json").read_text())
    names = {number: name for name, number in content["question_type"].items()}
    assert len(content["questions"]) == PARAMS.seedbench
    assert len({names[question["question_type_id"]] for question in content["questions"]}) == 5
    for question in content["questions"]:
        assert len({question[f"choice_{letter}"] for letter in "abcd"}) == 4
        assert question["answer"] in "ABCD"
        assert Image.open(folder / "SEED-Bench-image" / question["data_id"]).size == (128, 128)


def test_mme_layout(written):
    folder = written[0] / "mme"
    tasks = ["color", "count", "existence", "numerical_calculation", "position"]
    assert sorted(path.stem for path in (folder / "questions").iterdir()) == tasks
    for path in (folder / "questions").iterdir():
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        assert len(lines) == 2 * PARAMS.mme
        for yes, no in zip(lines[::2], lines[1::2], strict=True):
            assert (yes[0], yes[2], no[2]) == (no[0], "Yes", "No")
            assert yes[1].endswith("Please answer yes or no.")
            assert (folder / "images" / path.stem / yes[0]).is_file()


def test_rle_holds_the_mask_exactly():
    one = scenes.scene(PARAMS, split="val", block="refcoco", number=3)
    for annotation in refer._annotations(one):
        mask = coco_mask.decode(annotation["segmentation"])
        assert np.array_equal(mask, one.rendering.instances == annotation["instance"])


def test_short_cuts_are_near_the_majority_letter():
    """Neither the lowest marker, nor the one on the biggest object, nor the brightest gives the answer away."""
    asked, right = Counter(), Counter()
    number = 0
    while asked.total() < 300:
        one = scenes.scene(PARAMS, split="test", block="hardblink_3", number=number)
        areas, image = hardblink.object_areas(one.rendering), one.rendering.image
        for n in hardblink.POINTS:
            markers = sample_markers(1 / one.rendering.depth, count=n, rng=one.rng, areas_HW=areas, image_HW3=image)
            if markers is not None:
                asked[n, answer(markers)] += 1
                facts = [hardblink._facts(marker, areas, image) for marker in markers]
                for cue in ("y", "area", "brightness"):
                    right[cue] += f"({max(facts, key=lambda p: p[cue])['letter']})" == answer(markers)
        number += 1
    majority = sum(max(asked[n, f"({letter})"] for letter in "ABCDE") for n in hardblink.POINTS) / asked.total()
    assert majority < 0.45
    for cue in ("y", "area", "brightness"):
        assert right[cue] / asked.total() < majority + 0.08, cue


@pytest.fixture(scope="module")
def with_further_tests(tmp_path_factory):
    root = tmp_path_factory.mktemp("further")
    write_world(root, params=PARAMS.model_copy(update={"new_scenes": 3, "pairs": 2}), workers=1)
    return root


def test_further_tests_leave_the_rest_of_the_world_as_it_is(written, with_further_tests):
    further, plain = digests(with_further_tests), digests(written[0])
    assert json.loads((written[0] / "world.json").read_text()) == PARAMS.model_dump(exclude={"new_scenes", "pairs"})
    del further["world.json"], plain["world.json"]
    assert {name: further[name] for name in plain} == plain
    folders = {name.split("/")[0] for name in further.keys() - plain.keys()}
    assert folders == {"refcoco_new", "hardblink_new", "hardblink_pairs"}


def test_further_tests_are_read_as_the_official_ones_are(with_further_tests):
    new, pairs = (HardBlink(with_further_tests / f"hardblink_{name}") for name in ("new", "pairs"))
    assert [item.question for item in new.items] == [hardblink.QUESTION] * 9
    assert len(pairs.items) == 6
    masks = ReferringSegmentation(with_further_tests / "refcoco_new", split="test", split_by="umd")
    assert len(masks.items) > 3
    sizes = {Image.open(item.image).size for item in masks.items}
    assert sizes == {(128, 128)}


def test_items_of_a_benchmark_share_no_scene_and_the_last_allowed_one_has_all_its_tries(monkeypatch):
    taken = []
    monkeypatch.setattr(scenes, "scene", lambda _, **where: taken.append(where["number"]))
    for number in (0, 1, 2):
        with pytest.raises(RuntimeError, match=f"hardblink_5: none of 4 scenes suits item {number}"):
            scenes.suitable(PARAMS, block="hardblink_5", number=number, find=lambda _: None, tries=4)
    assert taken == list(range(12))
    find = iter([None, None, "found"])
    assert scenes.suitable(PARAMS, block="hardblink_5", number=0, find=lambda _: next(find))[1] == "found"

    most_new = next(it.le for it in RenderParams.model_fields["new_scenes"].metadata if hasattr(it, "le"))
    most = next(it.le for it in RenderParams.model_fields["hardblink"].metadata if hasattr(it, "le"))
    assert most_new * hardblink.NEW.tries <= scenes.BLOCK
    assert most * hardblink.HARDBLINK.tries <= scenes.BLOCK


def test_the_answer_to_a_pair_is_the_nearer_of_the_two(tmp_path):
    params = PARAMS.model_copy(update={"pairs": 3})
    for number in range(9):
        row = hardblink.PAIRS.make(params, tmp_path, number)
        named = row["text"].removeprefix("Which point is closer to the camera, ").removesuffix("?").split(" or ")
        assert len(set(named)) == 2
        marked = np.asarray(
            Image.open(tmp_path / "hardblink_pairs/images" / f"blink{row['subset']}pointscenter/{row['question_id']}.png")
        )
        for attempt in range(scenes.TRIES):
            place = row["question_id"] * scenes.TRIES + attempt
            one = scenes.scene(params, split="test", block=f"hardblink_pairs_{row['subset']}", number=place)
            if (one.rendering.image == marked).all(axis=2).mean() > 0.5:
                break
        depths = {p["letter"]: one.rendering.depth[p["y"], p["x"]] for p in row["points"] if p["letter"] in named}
        assert row["answer"] == f"({min(depths, key=depths.get)})"


def test_unlike_worlds_share_no_range_with_the_usual_ones():
    """Read off the worlds themselves: camera, proportions, sizes and surfaces lie apart."""

    def measured(domain):
        worlds = [sample_scene(split_seed("test", i), domain=domain) for i in range(40)]
        things = [thing for world in worlds for thing in world.objects if thing.role == "object"]
        return {
            "height": [world.camera.height for world in worlds],
            "pitch": [world.camera.pitch for world in worlds],
            "focal": [-world.camera.focal for world in worlds],
            "texture": [world.ground.scale for world in worlds],
            "tall": [thing.half[1] / thing.half[0] for thing in things if thing.shape != "sphere"],
        }, {round(thing.half[0], 3) for thing in things}

    usual, unlike = measured(USUAL), measured(UNLIKE)
    for name in usual[0]:
        assert max(usual[0][name]) < min(unlike[0][name]), name
    assert not usual[1] & unlike[1]

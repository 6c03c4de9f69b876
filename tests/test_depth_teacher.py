"""The depth teacher against formulas of its own and `transformers`' pipeline, and its stage on bad files and after a kill."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, pipeline

from collecting import write_manifest
from parameters import given
from perceptio_core.data.manifest.manifest import ImageRow
from perceptio_core.depth.store import DepthStore
from perceptio_core.depth.teacher import LEAST_DEPTH, Teacher, batches, model_size, position_table, stored_size
from perceptio_core.foundations.depth_anything import image_processor
from perceptio_core.params.render import RenderParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.teacher_depth import TeacherDepthParams
from stages import teacher_depth as stage

REPOSITORY = Path(__file__).resolve().parent.parent


def noise(number: int, *, height: int, width: int) -> Image.Image:
    """A picture of coarse random colours."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def tiny_teacher(folder: Path, *, kind: str) -> Path:
    """Write a Depth Anything of random weights whose maps vary, and reach what is clamped: depths near 0."""
    backbone = Dinov2Config(
        image_size=128,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        out_indices=[0, 1, 2, 3],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=16,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DepthAnythingForDepthEstimation(config).eval()
        pixels = image_processor()(images=noise(0, height=128, width=128), return_tensors="pt")["pixel_values"]
        caught: list[torch.Tensor] = []
        handle = model.head.conv3.register_forward_hook(lambda *call: caught.append(call[-1]))
        with torch.no_grad():
            model(pixels)
            handle.remove()
            scale = (10 if kind == "metric" else 1) / caught[0].std()
            model.head.conv3.weight *= scale
            model.head.conv3.bias.copy_((model.head.conv3.bias - caught[0].mean()) * scale)
    model.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["relative", "metric"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("teacher") / request.param, kind=request.param)


def by_pipeline(checkpoint: Path, images: list[Image.Image]) -> list[np.ndarray]:
    """Inverse depth as `transformers`' own pipeline has it, image by image."""
    estimate = pipeline("depth-estimation", model=str(checkpoint), device="cpu", dtype=torch.float32)
    depths = [np.asarray(estimate(image)["predicted_depth"], np.float64) for image in images]
    if checkpoint.name == "metric":
        return [1 / np.maximum(depth, LEAST_DEPTH) for depth in depths]
    return [np.maximum(depth, 0) for depth in depths]


def test_at_the_models_own_size_the_maps_are_those_of_the_librarys_pipeline(checkpoint: Path) -> None:
    images = [noise(number, height=128, width=128) for number in range(3)]
    teacher = Teacher.from_pretrained(checkpoint)
    maps = teacher.inverse_depth([teacher.pixels(image) for image in images], [(128, 128)] * 3)
    expected = by_pipeline(checkpoint, images)
    clamped = 1 / LEAST_DEPTH if checkpoint.name == "metric" else 0.0
    assert any((one == clamped).any() for one in expected), "the case of depths that cannot be is among them"
    for found, wanted in zip(maps, expected, strict=True):
        assert found.dtype == np.float32
        assert wanted.std() > 0.1 * wanted.mean()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * wanted.max())
    assert not np.allclose(maps[0], maps[1], rtol=0.1)


def cubic(places: np.ndarray, *, length: int) -> np.ndarray:
    """Weights (len(places), length) of Keys' cubic interpolation, a = -0.75, with the border repeated."""
    weights = np.zeros((len(places), length))
    for row, place in enumerate(places):
        for index in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(place - index)
            near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[row, min(max(index, 0), length - 1)] += near if d <= 1 else far
    return weights


def linear(size: int, *, length: int) -> np.ndarray:
    """Weights (size, length) of linear interpolation with the first and last values in place."""
    places = np.arange(size) * ((length - 1) / max(size - 1, 1))
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(length)))


def by_formula(checkpoint: Path, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The map that Depth Anything's own code makes, from its rules: all but the network in double precision.

    An image of `size` (h, w) in the model is cubic at pixel centres; the position table of side s is read at
    (i + 0.5) s / (n + 0.1) - 0.5 for cell i of n; the map is bilinear with corners on corners.
    """
    model = DepthAnythingForDepthEstimation.from_pretrained(checkpoint, dtype=torch.float64).eval()
    values = np.asarray(image, np.float64) / 255
    rows, columns = (
        cubic((np.arange(new) + 0.5) * old / new - 0.5, length=old) for new, old in zip(size, values.shape, strict=False)
    )
    pixels = np.einsum("yh,xw,hwc->cyx", rows, columns, values, optimize=True)
    pixels = (pixels - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    embeddings = model.backbone.embeddings
    table = embeddings.position_embeddings.detach().numpy()
    side, cells = math.isqrt(table.shape[1] - 1), [length // 16 for length in size]
    if cells != [side, side]:
        down, across = (cubic((np.arange(n) + 0.5) * side / (n + 0.1) - 0.5, length=side) for n in cells)
        grid = np.einsum("yh,xw,hwd->yxd", down, across, table[0, 1:].reshape(side, side, -1), optimize=True)
        table = np.concatenate([table[:, :1], grid.reshape(1, cells[0] * cells[1], -1)], axis=1)
    embeddings.interpolate_pos_encoding = lambda *_: torch.tensor(table)
    with torch.no_grad():
        predicted = model(torch.tensor(pixels)[None]).predicted_depth[0].numpy()
    down, across = (linear(new, length=old) for new, old in zip((image.height, image.width), predicted.shape, strict=True))
    depth = down @ predicted @ across.T
    return 1 / np.maximum(depth, LEAST_DEPTH) if checkpoint.name == "metric" else np.maximum(depth, 0)


@pytest.mark.parametrize(
    ("height", "width", "inside"),
    [
        (106, 160, (128, 192)),
        (160, 107, (192, 128)),
        (120, 160, (128, 176)),
        (128, 128, (128, 128)),
        (31, 29, (144, 128)),
        (75, 75, (128, 128)),
        (250, 188, (176, 128)),
        (213, 320, (128, 192)),
        (64, 300, (128, 608)),
        (301, 99, (384, 128)),
    ],
)
def test_maps_of_any_shape_are_those_of_depth_anythings_own_rules(
    checkpoint: Path, height: int, width: int, inside: tuple[int, int]
) -> None:
    """As reported in huggingface/transformers#31522, `transformers`' preprocessing does not give the original's values."""
    teacher, image = Teacher.from_pretrained(checkpoint), noise(5, height=height, width=width)
    pixels = teacher.pixels(image)
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, *inside))
    (found,) = teacher.inverse_depth([pixels], [(height, width)])
    expected = by_formula(checkpoint, image, inside)
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-4 * expected.max())
    assert expected.std() > 0.1 * expected.mean()


@pytest.mark.parametrize(
    ("height", "width", "inside"),
    [
        (426, 640, (518, 784)),
        (640, 427, (770, 518)),
        (480, 640, (518, 686)),
        (518, 518, (518, 518)),
        (518, 525, (518, 532)),  # 37.5 patches: to the even number, as NumPy rounds
        (518, 539, (518, 532)),  # 38.5 patches
        (3000, 4000, (518, 686)),
        (1, 1, (518, 518)),
        (100, 800, (518, 4144)),
        (100, 801, (518, 4144)),  # 8 times the side at most
        (3000, 1, (4144, 518)),
    ],
)
def test_the_shorter_side_is_the_models_and_the_longer_keeps_the_shape(
    height: int, width: int, inside: tuple[int, int]
) -> None:
    assert model_size(height=height, width=width, side=518, multiple=14) == inside


def test_a_side_that_is_no_multiple_is_rounded_up() -> None:
    assert model_size(height=100, width=100, side=520, multiple=14) == (532, 532)
    assert model_size(height=100, width=200, side=520, multiple=14) == (532, 1036), "1040 rounds down: it is above the side"


def test_a_position_table_of_every_size_has_a_row_for_each_patch() -> None:
    """As reported in facebookresearch/dinov2#333 and #378, a scale without the offset gives one row less at some sizes."""
    table = torch.randn(1, 1 + 37 * 37, 1)
    embeddings = SimpleNamespace(position_embeddings=table, config=SimpleNamespace(patch_size=14))
    for cells in range(37, 8 * 37 + 1):
        assert position_table(embeddings, table, 14 * cells, 518).shape == (1, 1 + 37 * cells, 1)
        assert position_table(embeddings, table, 518, 14 * cells).shape == (1, 1 + 37 * cells, 1)
    assert position_table(embeddings, table, 518, 518) is table


def test_each_map_of_a_batch_has_the_size_that_it_was_asked_for(checkpoint: Path) -> None:
    teacher = Teacher.from_pretrained(checkpoint)
    pixels = [teacher.pixels(noise(number, height=128, width=128)) for number in range(2)]
    maps = teacher.inverse_depth(pixels, [(128, 128), (10, 7)])
    assert [one.shape for one in maps] == [(128, 128), (10, 7)]
    assert all(one.min() >= 0 for one in maps)
    with pytest.raises(ValueError, match="zip"):
        teacher.inverse_depth(pixels, [(128, 128)])


def test_a_batch_is_of_one_shape_and_has_at_most_its_pixels() -> None:
    shapes = [(3, 2, 2), (3, 2, 4), (3, 2, 2), (3, 2, 2), (3, 2, 4), (3, 4, 2), (3, 2, 2)]
    items = [(number, torch.full(shape, float(number))) for number, shape in enumerate(shapes)]
    asked = iter(items)
    made = batches(asked, most_pixels=8)
    assert [key for key, _ in next(made)] == [1], "8 pixels are a batch"
    assert next(asked)[0] == 2, "a full batch is given out before the next is read"
    keys = [[key for key, _ in batch] for batch in batches(items, most_pixels=8)]
    assert keys == [[1], [0, 2], [4], [5], [3, 6]]
    assert [[key for key, _ in batch] for batch in batches(items, most_pixels=11)] == keys, "12 are three of four pixels"
    assert [[key for key, _ in batch] for batch in batches(items, most_pixels=1)] == [[n] for n in range(7)]
    for batch in batches(items, most_pixels=16):
        assert len({pixels.shape for _, pixels in batch}) == 1
        assert all((pixels == key).all() for key, pixels in batch)
    assert list(batches([], most_pixels=8)) == []


@pytest.mark.parametrize(
    ("height", "width", "stored"),
    [
        (480, 640, (480, 640)),
        (1000, 500, (640, 320)),
        (500, 1000, (320, 640)),
        (641, 641, (640, 640)),
        (3000, 1, (640, 1)),
        (427, 1281, (213, 640)),
    ],
)
def test_maps_are_scaled_down_to_the_long_side_and_never_up(height: int, width: int, stored: tuple[int, int]) -> None:
    assert stored_size(height=height, width=width, long_side=640) == stored


def profile(**more: int) -> SimpleNamespace:
    """The sections that the stage reads."""
    data = [{"name": "set", "kind": "coco", "path": "set", "split": "train"}]
    params = {"batch_size": 2, "long_side": 48, "images_per_shard": 3, "workers": 2}
    return given(
        sources=SourcesParams(render=RenderParams(train=1, val=1, test=1), root=None, datasets=data),
        teacher_depth=TeacherDepthParams(**params | more),
    )


def write_sources(top: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """The manifest of pictures below ``artifacts/t/sources/root``: upright (height, width) by file."""
    rows = [
        ImageRow(image_key=f"set/{name}", path=name, width=width, height=height, sha256="0" * 64, split="train")
        for name, (height, width) in sorted(sizes.items())
    ]
    write_manifest(top / "artifacts/t/sources", images=rows)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run the stage in, with a metric teacher and no pictures yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["teacher_depth"])
    monkeypatch.setattr(stage, "read_values", lambda _: profile())
    (tmp_path / "artifacts/t/sources/root").mkdir(parents=True)
    tiny_teacher(tmp_path / "artifacts/t/foundations/depth_anything", kind="metric")
    return tmp_path


def test_pictures_of_any_size_and_mode_have_maps_and_bad_files_a_reason(checkout: Path) -> None:
    root = checkout / "artifacts/t/sources/root"
    plain = noise(1, height=40, width=30)
    pictures = {
        "a.png": plain,
        "b.jpg": noise(2, height=96, width=64),
        "c.png": plain.convert("L"),
        "d.png": plain.convert("RGBA"),
        "e.png": plain.convert("P"),
        "f.png": Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 256),
        "g.jpg": noise(3, height=33, width=50).convert("CMYK"),
        "i.webp": noise(4, height=50, width=33),
    }
    for name, picture in pictures.items():
        picture.save(root / name)
    (root / "bad.jpg").write_bytes((root / "b.jpg").read_bytes()[:400])
    Image.new("RGB", (400, 300)).save(root / "vast.png")
    sizes = {name: (picture.height, picture.width) for name, picture in pictures.items()}
    write_sources(checkout, sizes | {"bad.jpg": (96, 64), "vast.png": (299, 400), "gone.png": (5, 5)})
    stage.main()

    out = checkout / "artifacts/t/teacher_depth"
    refused = {row["file"]: row["reason"] for row in map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())}
    assert sorted(refused) == ["bad.jpg", "gone.png", "vast.png"]
    assert refused["bad.jpg"].startswith("bad.jpg: damaged or cut off: ")
    assert refused["gone.png"] == "gone.png: No such file or directory"
    # No limit of its own: what `sources` let in may not grow.
    assert refused["vast.png"] == "vast.png: 400 x 300 pixels, at most 119600 are allowed"
    assert json.loads((out / "summary.json").read_text()) == {"images": 8, "quarantined": 3, "shards": 4}
    assert sorted(file.name for file in out.glob("*.tar")) == [f"depth-{number:05d}.tar" for number in range(4)]

    store = DepthStore(out)
    assert len(store) == len(pictures)
    teacher = Teacher.from_pretrained(checkout / "artifacts/t/foundations/depth_anything")
    for name in pictures:
        with Image.open(root / name) as file:
            gray = Image.fromarray((np.asarray(file) // 256).astype(np.uint8)) if name == "f.png" else file
            rgb = gray.convert("RGB")
        size = stored_size(height=rgb.height, width=rgb.width, long_side=48)
        (expected,) = teacher.inverse_depth([teacher.pixels(rgb)], [size])
        np.testing.assert_allclose(store[f"set/{name}"], expected, rtol=1e-3, atol=1e-4 * expected.max(), err_msg=name)


def test_a_map_that_is_not_finite_is_one_pictures_loss(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As reported in DepthAnything/Depth-Anything-V2#114, a network may write infinity for one picture."""
    root, sizes = checkout / "artifacts/t/sources/root", {}
    for number in range(4):
        noise(number, height=30, width=30 + number).save(root / f"{number}.png")
        sizes[f"{number}.png"] = (30, 30 + number)
    write_sources(checkout, sizes)
    inverse_depth = Teacher.inverse_depth

    def broken(teacher: Teacher, pixels, wanted):
        maps = inverse_depth(teacher, pixels, wanted)
        for one in maps:
            if one.shape == (30, 32):
                one[3, 4] = np.inf
        return maps

    monkeypatch.setattr(Teacher, "inverse_depth", broken)
    stage.main()
    out = checkout / "artifacts/t/teacher_depth"
    (row,) = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    assert row == {"file": "2.png", "reason": "set/2.png: the depth map holds values that are not finite"}
    assert json.loads((out / "summary.json").read_text()) == {"images": 3, "quarantined": 1, "shards": 2}
    assert "set/2.png" not in DepthStore(out)


def test_strips_have_maps_of_their_own_size(checkout: Path) -> None:
    """As reported in nagadomi/nunif#256, a strip of 32 x 1024 pixels makes Depth Anything's own code run out of memory."""
    root, sizes = checkout / "artifacts/t/sources/root", {"a.png": (32, 1024), "b.png": (300, 1), "c.png": (1, 1)}
    for number, (name, (height, width)) in enumerate(sizes.items()):
        noise(number, height=height, width=width).save(root / name)
    write_sources(checkout, sizes)
    stage.main()
    store = DepthStore(checkout / "artifacts/t/teacher_depth")
    shapes = {name: store[f"set/{name}"].shape for name in sizes}
    assert shapes == {"a.png": (2, 48), "b.png": (48, 1), "c.png": (1, 1)}


def test_turned_photographs_have_the_maps_of_upright_ones(checkout: Path) -> None:
    root, sizes = checkout / "artifacts/t/sources/root", {}
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise(orientation, height=40, width=30).save(root / f"{orientation}.jpg", exif=exif)
        with Image.open(root / f"{orientation}.jpg") as turned:
            upright = ImageOps.exif_transpose(turned)
        assert upright.size == ((40, 30) if orientation > 4 else (30, 40))
        upright.save(root / f"{orientation}.png")
        sizes |= dict.fromkeys((f"{orientation}.jpg", f"{orientation}.png"), (upright.height, upright.width))
    write_sources(checkout, sizes)
    stage.main()
    store = DepthStore(checkout / "artifacts/t/teacher_depth")
    for orientation in range(2, 9):
        found, expected = store[f"set/{orientation}.jpg"], store[f"set/{orientation}.png"]
        assert found.shape == sizes[f"{orientation}.png"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max(), err_msg=str(orientation))
        assert expected.std() > 0.01 * expected.mean(), "a turn would show"


KILLED = """
import os, sys, signal
from pathlib import Path
import torch
from parameters import given
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.teacher_depth import TeacherDepthParams
from stages import teacher_depth as stage
from perceptio_core.tied import tie

sources, teacher = sys.argv[1:]
profile = given(
    sources=SourcesParams.model_validate_json(sources), teacher_depth=TeacherDepthParams.model_validate_json(teacher)
)
sys.argv[1:] = []
torch.set_num_threads(1)
stage.read_values = lambda _: profile
write_shard = stage.write_shard

def dying(folder, *, name, maps):
    def some():
        for number, one in enumerate(maps):
            if name == "depth-00001.tar" and number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield one

    return write_shard(folder, name=name, maps=some())

def noting(folder, *, name, maps):
    print(name, flush=True)
    return write_shard(folder, name=name, maps=maps)

def run(top, make):
    pid = os.fork()
    if pid == 0:
        try:
            tie(os.getppid())
            os.chdir(top)
            stage.write_shard = make
            stage.main()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]

def files(pattern):
    return [(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(Path("killed").glob(pattern))]

assert run("killed", dying) == signal.SIGKILL
before = files(".work/t/teacher_depth/*/out/depth-*.tar")
assert len(before) == 1, before
assert not Path("killed/artifacts/t/teacher_depth").exists()
assert run("killed", noting) == 0
after = files("artifacts/t/teacher_depth/depth-*.tar")
assert before == after[:1] and len(after) == 3, (before, after)
print("and whole", flush=True)  # unflushed, the next fork would print it again
assert run("whole", noting) == 0
"""
"""Three runs of the stage, forked before torch has computed anything: one that is killed in its second shard of three, one that
goes on after it, and one that is left alone."""


def test_a_killed_stage_goes_on_with_the_shards_that_are_missing(checkout: Path) -> None:
    root = checkout / "artifacts/t/sources/root"
    sizes = {f"{number}.png": (20 + number, 24) for number in range(7)}
    for number, (name, (height, width)) in enumerate(sizes.items()):
        noise(number, height=height, width=width).save(root / name)
    (root / "1.png").write_bytes(b"no picture")
    write_sources(checkout, sizes)
    for top in ("killed", "whole"):
        (checkout / top / "artifacts/t").mkdir(parents=True)
        for made in ("sources", "foundations"):
            (checkout / top / "artifacts/t" / made).symlink_to(checkout / "artifacts/t" / made)
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
    sections = (profile().section("sources", None), profile().section("teacher_depth", None))
    command = [sys.executable, "-c", KILLED, *(section.model_dump_json() for section in sections)]
    run = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    shards = [f"depth-{number:05d}.tar" for number in range(3)]
    assert run.stdout.split("\n")[:-1] == [*shards[1:], "and whole", *shards]
    killed, whole = (
        {path.name: path.read_bytes() for path in (checkout / top / "artifacts/t/teacher_depth").iterdir()}
        for top in ("killed", "whole")
    )
    assert killed.keys() == {*shards, "index.parquet", "quarantine.jsonl", "metrics.json", "summary.json"}
    assert killed == whole
    assert b'"1.png"' in whole["quarantine.jsonl"]
    assert not list((checkout / "killed/.work/t/teacher_depth").iterdir())

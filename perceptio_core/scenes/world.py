"""Sampling of procedural worlds: camera, light, haze, ground and primitives at many depths and levels (ours).

The world is made so that depth can be read from natural cues (perspective, texture gradient, shading, shadow, haze,
occlusion) while no image-plane short cut gives it away: an object is placed by drawing its place in the image and its
depth *independently*, and then stands on the ground, on a pillar, on another object, or floats. Axes: x right, y up,
z forward, metres; the camera stands at (0, height, 0) and looks along +z, pitched down.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SHAPES = ("sphere", "box", "cylinder", "cone")
MATERIALS = ("matte", "shiny", "striped")
SIZES = ("small", "large")
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.10, 0.10),
    "orange": (0.92, 0.48, 0.08),
    "yellow": (0.90, 0.82, 0.12),
    "green": (0.12, 0.58, 0.16),
    "cyan": (0.12, 0.70, 0.72),
    "blue": (0.12, 0.22, 0.80),
    "purple": (0.50, 0.14, 0.66),
    "white": (0.88, 0.88, 0.88),
}
PLATFORM_COLORS = ((0.45, 0.33, 0.22), (0.36, 0.36, 0.38), (0.55, 0.50, 0.42), (0.24, 0.22, 0.22))
NEAR, FAR = 1.5, 9.0  # metres, range of object depths
# Thick fog: far things fade into a bluish haze of any brightness, so that distance shows in colour and contrast at every
# place of the picture, while "the brightest is nearest" (or farthest) does not hold.
# In thin haze a small vision tower learns depth too slowly for a demonstration.
HAZE_LENGTH = (2.6, 3.2)  # metres over which contrast falls to 1/e
HAZE_TINT = (-0.10, 0.0, 0.12)
APPARENT = (0.045, 0.17)  # half width in the image as a share of the image width: legible, yet no object fills the view


@dataclass(frozen=True, kw_only=True)
class Domain:
    """From which ranges the camera, the surfaces and the proportions of a world are drawn, all uniformly.

    Attributes:
        height: of the camera, metres.
        pitch: of the camera, down, degrees.
        view: horizontal field of view, degrees.
        surface_scale: of the textures of ground and wall, metres.
        surface_value: mean of the surfaces' colours, 0..1.
        surface_contrast: of a texture's second colour, as a factor on the first.
        tall: height of boxes, cylinders and cones as a multiple of their width.
        half_extent: half of the width, metres, by size.
    """

    height: tuple[float, float]
    pitch: tuple[float, float]
    view: tuple[float, float]
    surface_scale: tuple[float, float]
    surface_value: tuple[float, float]
    surface_contrast: tuple[float, float]
    tall: tuple[float, float]
    half_extent: Mapping[str, tuple[float, float]]


USUAL = Domain(
    height=(1.0, 3.2),
    pitch=(-2.0, 24.0),
    view=(48.0, 74.0),
    surface_scale=(0.4, 1.1),
    surface_value=(0.25, 0.70),
    surface_contrast=(0.55, 0.85),
    tall=(0.8, 1.35),
    half_extent={"small": (0.19, 0.22), "large": (0.44, 0.51)},
)
"""The worlds of training and of the benchmarks."""
UNLIKE = Domain(
    height=(3.6, 4.6),
    pitch=(27.0, 36.0),
    view=(80.0, 96.0),
    surface_scale=(1.5, 2.4),
    surface_value=(0.74, 0.86),
    surface_contrast=(0.25, 0.45),
    tall=(1.6, 2.1),
    half_extent={"small": (0.27, 0.31), "large": (0.34, 0.38)},
)
"""Worlds that share no range with `USUAL`: another camera, other surfaces, other sizes and proportions. Light and haze are as
there: what is asked is whether depth is read, and in the haze a part of it can be seen."""
SPLITS = {"train": 0, "val": 1, "test": 2}
SEEDS_PER_SPLIT = 1 << 30


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One primitive. `half` is the half extent (x, y, z) in metres before `yaw` (radians about the vertical axis)."""

    shape: str
    color: str
    material: str
    size: str
    role: str  # "object", or "platform": a pillar or slab that only carries objects
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Pinhole camera: `height` in metres, `pitch` (down) and `roll` in radians, `focal` in units of the image width."""

    height: float
    pitch: float
    roll: float
    focal: float


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Texture of the ground or wall: kind 0 plain, 1 checker, 2 tiles, 3 planks; `scale` in metres."""

    kind: int
    scale: float
    yaw: float
    rgb_a: tuple[float, float, float]
    rgb_b: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class World:
    """A complete scene; everything that `render` needs, and nothing that depends on pixels."""

    seed: int
    size: int
    camera: Camera
    light: tuple[float, float, float]  # unit vector towards the light
    ambient: float
    haze_rgb: tuple[float, float, float]
    haze_length: float  # metres over which contrast falls to 1/e
    ground: Surface
    wall: Surface
    wall_depth: float  # metres; infinity: no wall
    noise: float  # standard deviation of the sensor noise, in 0..1
    blur: float  # weight of the neighbours in the optical blur, 0..0.25
    objects: list[SceneObject]


def split_seed(split: str, index: int) -> int:
    """Seed of scene `index` of a split; the ranges of "train", "val" and "test" never meet."""
    if split not in SPLITS or not 0 <= index < SEEDS_PER_SPLIT:
        raise ValueError(f"split {split!r}, index {index}: allowed are {sorted(SPLITS)} and 0..{SEEDS_PER_SPLIT - 1}")
    return SPLITS[split] * SEEDS_PER_SPLIT + index


def sample_scene(seed: int, size: int = 128, *, domain: Domain = USUAL) -> World:
    """Draw the world of a seed. `size` is the side of the square image in pixels and changes nothing else."""
    rng = np.random.default_rng(seed)
    camera = Camera(
        height=rng.uniform(*domain.height),
        pitch=math.radians(rng.uniform(*domain.pitch)),
        roll=math.radians(rng.normal(0.0, 1.5)),
        focal=0.5 / math.tan(math.radians(rng.uniform(*domain.view)) / 2),
    )
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(35, 75))
    haze_value = rng.uniform(0.30, 0.80)
    return World(
        seed=seed,
        size=size,
        camera=camera,
        light=(
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
            math.cos(elevation) * math.cos(azimuth),
        ),
        ambient=rng.uniform(0.35, 0.55),
        haze_rgb=_rgb(haze_value + rng.normal(0, 0.03, 3) + np.array(HAZE_TINT)),
        haze_length=rng.uniform(*HAZE_LENGTH),
        ground=_surface(rng, domain),
        wall=_surface(rng, domain),
        wall_depth=rng.uniform(9.0, 17.0) if rng.random() < 0.35 else math.inf,
        noise=rng.uniform(0.004, 0.016),
        blur=rng.uniform(0.08, 0.18),
        objects=_place_objects(rng, camera, domain),
    )


def ray(camera: Camera, u: float, v: float) -> tuple[float, float, float]:
    """Direction of the ray through image point (u, v) in 0..1, v down; its length along the optical axis is 1."""
    x, y = (u - 0.5) / camera.focal, (0.5 - v) / camera.focal
    cos_roll, sin_roll = math.cos(camera.roll), math.sin(camera.roll)
    x, y = x * cos_roll - y * sin_roll, x * sin_roll + y * cos_roll
    cos_pitch, sin_pitch = math.cos(camera.pitch), math.sin(camera.pitch)
    return x, y * cos_pitch - sin_pitch, y * sin_pitch + cos_pitch


def _rgb(values: np.ndarray) -> tuple[float, float, float]:
    r, g, b = np.clip(values, 0.02, 0.98)
    return float(r), float(g), float(b)


def _surface(rng: np.random.Generator, domain: Domain) -> Surface:
    base = rng.uniform(*domain.surface_value) + rng.normal(0, 0.06, 3)
    return Surface(
        kind=int(rng.integers(0, 4)),
        scale=rng.uniform(*domain.surface_scale),
        yaw=rng.uniform(0, math.pi / 2),
        rgb_a=_rgb(base),
        rgb_b=_rgb(base * rng.uniform(*domain.surface_contrast)),
    )


def _place_objects(rng: np.random.Generator, camera: Camera, domain: Domain) -> list[SceneObject]:
    wanted = int(rng.integers(4, 9))
    placed: list[SceneObject] = []
    count = 0
    for _ in range(wanted * 12):
        if count == wanted:
            break
        group = _propose(rng, camera, domain, placed)
        if group and not any(_collide(new, old) for new in group for old in placed):
            placed.extend(group)
            count += 1
    return placed


def _propose(rng: np.random.Generator, camera: Camera, domain: Domain, placed: list[SceneObject]) -> list[SceneObject]:
    """An object, with the pillar that carries it if any; empty if the drawn place is below the ground."""
    shape, size = str(rng.choice(SHAPES)), str(rng.choice(SIZES))
    width = rng.uniform(*domain.half_extent[size])
    tall = 1.0 if shape == "sphere" else rng.uniform(*domain.tall)
    half = (width, width * tall, width)
    carriers = [o for o in placed if o.shape in ("box", "cylinder") and o.half[0] > 0.9 * width and o.role == "object"]
    if carriers and rng.random() < 0.15:
        below = carriers[int(rng.integers(len(carriers)))]
        x, y, z = below.center
        return [_object(rng, shape, size, (x, y + below.half[1] + half[1] + 1e-3, z), half)]
    u, v = rng.uniform(0.07, 0.93), float(np.clip(rng.normal(0.5, 0.15), 0.1, 0.92))
    dx, dy, dz = ray(camera, u, v)
    farthest = FAR if dy >= 0 else min(FAR, (camera.height - half[1]) / -dy)
    if farthest <= NEAR + 0.2:
        return []
    depth = math.exp(rng.uniform(math.log(NEAR), math.log(farthest)))
    if not APPARENT[0] < width * camera.focal / depth < APPARENT[1]:
        return []
    x, y, z = dx * depth, camera.height + dy * depth, dz * depth
    bottom = y - half[1]
    if bottom < 0.3:  # stands on the ground
        return [_object(rng, shape, size, (x, half[1], z), half)]
    group = [_object(rng, shape, size, (x, y, z), half)]
    if rng.random() < 0.65:
        post = width * rng.uniform(0.45, 0.9)
        group.append(
            SceneObject(
                shape=str(rng.choice(("box", "cylinder"))),
                color="plain",
                material="matte",
                size="large",
                role="platform",
                center=(x, bottom / 2, z),
                half=(post, bottom / 2 - 1e-3, post),
                yaw=rng.uniform(0, math.pi / 2),
                rgb=_rgb(np.array(PLATFORM_COLORS[int(rng.integers(len(PLATFORM_COLORS)))]) * rng.uniform(0.8, 1.3)),
            )
        )
    return group


def _object(
    rng: np.random.Generator,
    shape: str,
    size: str,
    center: tuple[float, float, float],
    half: tuple[float, float, float],
) -> SceneObject:
    color = str(rng.choice(list(COLORS)))
    return SceneObject(
        shape=shape,
        color=color,
        material=str(rng.choice(MATERIALS)),
        size=size,
        role="object",
        center=center,
        half=half,
        yaw=rng.uniform(0, math.pi / 2),
        rgb=_rgb(np.array(COLORS[color]) * rng.uniform(0.85, 1.12) + rng.normal(0, 0.015, 3)),
    )


def _collide(a: SceneObject, b: SceneObject) -> bool:
    """Whether the upright bounding cylinders of two objects meet (boxes by their half diagonal)."""
    radius = sum(o.half[0] * (1.42 if o.shape == "box" else 1.0) for o in (a, b))
    apart = math.hypot(a.center[0] - b.center[0], a.center[2] - b.center[2])
    return apart < radius and abs(a.center[1] - b.center[1]) < a.half[1] + b.half[1] - 2e-3

"""Ray casting of a world: colour image, exact depth and instance map (ours).

One primary and one shadow ray a pixel against analytic primitives, compiled by numba; no fast-math, so that the same
seed gives the same bytes. Depth is measured along the optical axis, in metres, as metric depth benchmarks do.
"""

import math
from dataclasses import dataclass

import numba
import numpy as np

from perceptio_core.scenes.world import MATERIALS, SHAPES, Surface, World

SKY_DEPTH = 20.0  # metres: the sky, and the most that any pixel is given
_EPS = 1e-4


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """`image` (H, W, 3) uint8 sRGB; `depth` (H, W) float32 in metres, at most SKY_DEPTH; `instances` (H, W) uint8: 0 is
    background, i + 1 is `world.objects[i]`.
    """

    image: np.ndarray
    depth: np.ndarray
    instances: np.ndarray


def render(world: World) -> Rendering:
    """Render a world at its size."""
    size, camera = world.size, world.camera
    view = np.array([camera.height, camera.pitch, camera.roll, camera.focal])
    scene = np.array([world.ambient, *world.haze_rgb, world.haze_length, world.wall_depth])
    color, depth, instances = _trace(
        size,
        view,
        np.array(world.light),
        scene,
        _surface_row(world.ground),
        _surface_row(world.wall),
        _rows(world),
        _windows(world),
    )
    padded = np.pad(color, ((1, 1), (1, 1), (0, 0)), mode="edge")
    blurred = (1 - 2 * world.blur) * padded[1:-1] + world.blur * (padded[:-2] + padded[2:])
    blurred = (1 - 2 * world.blur) * blurred[:, 1:-1] + world.blur * (blurred[:, :-2] + blurred[:, 2:])
    noise = np.random.default_rng((world.seed, 1)).standard_normal(blurred.shape, dtype=np.float32)
    image = np.clip(blurred + world.noise * noise, 0, 1)
    return Rendering(image=np.rint(255 * image).astype(np.uint8), depth=depth, instances=instances)


def _surface_row(surface: Surface) -> np.ndarray:
    return np.array([surface.kind, surface.scale, math.cos(surface.yaw), math.sin(surface.yaw), *surface.rgb_a, *surface.rgb_b])


def _rows(world: World) -> np.ndarray:
    """Objects as rows (kind, centre, half extents, cos yaw, sin yaw, rgb, material)."""
    rows = [
        (
            SHAPES.index(o.shape),
            *o.center,
            *o.half,
            math.cos(o.yaw),
            math.sin(o.yaw),
            *o.rgb,
            MATERIALS.index(o.material),
        )
        for o in world.objects
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 13)


def _windows(world: World) -> np.ndarray:
    """Pixel bounds (left, right, top, bottom) of each object's bounding sphere, by its tangents from the camera."""
    camera = world.camera
    cos_pitch, sin_pitch = math.cos(camera.pitch), math.sin(camera.pitch)
    cos_roll, sin_roll = math.cos(camera.roll), math.sin(camera.roll)
    windows = np.empty((len(world.objects), 4))
    for i, thing in enumerate(world.objects):
        x, y, z = thing.center
        y -= camera.height
        y, z = y * cos_pitch + z * sin_pitch, z * cos_pitch - y * sin_pitch
        x, y = x * cos_roll + y * sin_roll, y * cos_roll - x * sin_roll
        radius = math.hypot(*thing.half)
        for axis, offset in enumerate((x, -y)):
            angle, reach = math.atan2(offset, z), math.asin(min(1.0, radius / math.hypot(offset, z)))
            low = math.tan(angle - reach) if angle - reach > -1.5 else -1e6
            high = math.tan(angle + reach) if angle + reach < 1.5 else 1e6
            windows[i, 2 * axis] = (low * camera.focal + 0.5) * world.size - 1
            windows[i, 2 * axis + 1] = (high * camera.focal + 0.5) * world.size + 1
    return windows


@numba.njit(cache=True)
def _hit(row, ox, oy, oz, dx, dy, dz, nearest, normal):  # type: ignore[no-untyped-def]
    """Smallest ray parameter in (_EPS, nearest) where the ray meets the primitive, else `nearest`; writes the normal."""
    kind = int(row[0])
    px, py, pz = ox - row[1], oy - row[2], oz - row[3]
    hx, hy, hz = row[4], row[5], row[6]
    # bounding sphere
    a = dx * dx + dy * dy + dz * dz
    bound = hx * hx + hy * hy + hz * hz
    b = px * dx + py * dy + pz * dz
    c = px * px + py * py + pz * pz - bound
    if b * b - a * c <= 0 or (c > 0 and b > 0):
        return nearest
    if kind == 0:
        c = px * px + py * py + pz * pz - hx * hx
        disc = b * b - a * c
        if disc <= 0:
            return nearest
        t = (-b - math.sqrt(disc)) / a
        if t <= _EPS or t >= nearest:
            return nearest
        normal[0], normal[1], normal[2] = (px + t * dx) / hx, (py + t * dy) / hx, (pz + t * dz) / hx
        return t
    if kind == 1:
        cos, sin = row[7], row[8]
        qx, qz = cos * px + sin * pz, -sin * px + cos * pz
        ex, ez = cos * dx + sin * dz, -sin * dx + cos * dz
        enter, leave, axis, sign = -1e30, 1e30, 0, 1.0
        for k in range(3):
            o = qx if k == 0 else (py if k == 1 else qz)
            d = ex if k == 0 else (dy if k == 1 else ez)
            h = hx if k == 0 else (hy if k == 1 else hz)
            if abs(d) < 1e-12:
                if abs(o) > h:
                    return nearest
                continue
            near, far = (-h - o) / d, (h - o) / d
            if near > far:
                near, far = far, near
            if near > enter:
                enter, axis, sign = near, k, (-1.0 if d > 0 else 1.0)
            leave = min(leave, far)
        if enter >= leave or enter <= _EPS or enter >= nearest:
            return nearest
        if axis == 1:
            normal[0], normal[1], normal[2] = 0.0, sign, 0.0
        elif axis == 0:
            normal[0], normal[1], normal[2] = sign * cos, 0.0, sign * sin
        else:
            normal[0], normal[1], normal[2] = -sign * sin, 0.0, sign * cos
        return enter
    best = nearest
    if kind == 2:
        a = dx * dx + dz * dz
        b = px * dx + pz * dz
        disc = b * b - a * (px * px + pz * pz - hx * hx)
        if a > 1e-12 and disc > 0:
            t = (-b - math.sqrt(disc)) / a
            if _EPS < t < best and abs(py + t * dy) <= hy:
                best = t
                normal[0], normal[1], normal[2] = (px + t * dx) / hx, 0.0, (pz + t * dz) / hx
    else:
        slope = hx / (2 * hy)  # radius = slope * (hy - y): the apex is at +hy
        k = slope * slope
        top = hy - py
        a = dx * dx + dz * dz - k * dy * dy
        b = px * dx + pz * dz + k * top * dy
        disc = b * b - a * (px * px + pz * pz - k * top * top)
        if disc > 0 and abs(a) > 1e-12:
            root = math.sqrt(disc)
            for s in range(2):
                t = (-b - root) / a if s == 0 else (-b + root) / a
                y = py + t * dy
                if _EPS < t < best and abs(y) <= hy:
                    best = t
                    x, z, up = px + t * dx, pz + t * dz, slope * slope * (hy - y)
                    length = math.sqrt(x * x + up * up + z * z) + 1e-12
                    normal[0], normal[1], normal[2] = x / length, up / length, z / length
    if abs(dy) > 1e-12:  # caps: both ends of a cylinder, the base of a cone
        for s in range(2):
            if kind == 3 and s == 1:
                continue
            level = -hy if s == 0 else hy
            t = (level - py) / dy
            x, z = px + t * dx, pz + t * dz
            if _EPS < t < best and x * x + z * z <= hx * hx:
                best = t
                normal[0], normal[1], normal[2] = 0.0, (-1.0 if s == 0 else 1.0), 0.0
    return best


@numba.njit(cache=True)
def _texture(surface, x, z, rgb):  # type: ignore[no-untyped-def]
    """Colour of a textured plane at (x, z) metres."""
    u = (surface[2] * x + surface[3] * z) / surface[1]
    v = (-surface[3] * x + surface[2] * z) / surface[1]
    kind = int(surface[0])
    fu, fv = u - math.floor(u), v - math.floor(v)
    mix = 0.0
    if kind == 1:
        mix = float((math.floor(u) + math.floor(v)) & 1)
    elif kind == 2:
        mix = 1.0 if fu < 0.08 or fv < 0.08 else 0.0
    elif kind == 3:
        mix = 1.0 if fu < 0.06 else 0.35 * float(math.floor(u) & 1)
    grain = 0.03 * math.sin(7.0 * u + 3.0 * math.sin(5.0 * v)) + 0.03 * math.sin(11.0 * v + 2.0 * math.sin(9.0 * u))
    for i in range(3):
        rgb[i] = (1 - mix) * surface[4 + i] + mix * surface[7 + i] + grain


@numba.njit(cache=True)
def _trace(size, view, light, scene, ground, wall, rows, windows):  # type: ignore[no-untyped-def]
    color = np.empty((size, size, 3), np.float32)
    depth = np.empty((size, size), np.float32)
    instances = np.zeros((size, size), np.uint8)
    height, focal = view[0], view[3]
    cos_pitch, sin_pitch = math.cos(view[1]), math.sin(view[1])
    cos_roll, sin_roll = math.cos(view[2]), math.sin(view[2])
    lx, ly, lz = light[0], light[1], light[2]
    ambient, haze_length, wall_depth = scene[0], scene[4], scene[5]
    normal, scratch, rgb = np.zeros(3), np.zeros(3), np.zeros(3)
    for row in range(size):
        for column in range(size):
            x, y = ((column + 0.5) / size - 0.5) / focal, (0.5 - (row + 0.5) / size) / focal
            dx, y = x * cos_roll - y * sin_roll, x * sin_roll + y * cos_roll
            dy, dz = y * cos_pitch - sin_pitch, y * sin_pitch + cos_pitch
            t, what = 1e30, -3  # -3 sky, -2 wall, -1 ground, else object
            if dy < 0:
                t, what = height / -dy, -1
            if wall_depth < t * dz:
                t, what = wall_depth / dz, -2
            for i in range(rows.shape[0]):
                if column < windows[i, 0] or column > windows[i, 1] or row < windows[i, 2] or row > windows[i, 3]:
                    continue
                hit = _hit(rows[i], 0.0, height, 0.0, dx, dy, dz, t, normal)
                if hit < t:
                    t, what = hit, i
            distance = t * math.sqrt(dx * dx + dy * dy + dz * dz)
            if what == -3 or distance > 60.0:
                rise = max(0.0, dy)
                for i in range(3):
                    color[row, column, i] = min(1.0, scene[1 + i] * (1.0 + 0.35 * rise) + 0.10 * rise)
                depth[row, column] = SKY_DEPTH
                continue
            px, py, pz = t * dx, height + t * dy, t * dz
            shine, reflect = 0.0, 0.0
            if what == -1:
                normal[0], normal[1], normal[2] = 0.0, 1.0, 0.0
                _texture(ground, px, pz, rgb)
            elif what == -2:
                normal[0], normal[1], normal[2] = 0.0, 0.0, -1.0
                _texture(wall, px, py, rgb)
            else:
                thing = rows[what]
                # the last hit tested may not be the nearest one: restore its normal
                _hit(thing, 0.0, height, 0.0, dx, dy, dz, 1e30, normal)
                rgb[0], rgb[1], rgb[2] = thing[9], thing[10], thing[11]
                if thing[12] == 1.0:
                    shine, reflect = 0.55, 0.22
                elif thing[12] == 2.0:
                    band = (py - thing[2] + thing[5]) / 0.12
                    if math.floor(band) & 1:
                        dark = 0.22 if thing[9] + thing[10] + thing[11] > 1.5 else 2.1
                        for i in range(3):
                            rgb[i] = min(0.95, dark * rgb[i] + (0.35 if dark > 1 else 0.0))
                instances[row, column] = what + 1
            lit = lx * normal[0] + ly * normal[1] + lz * normal[2]
            if lit > 0:
                sx, sy, sz = px + 2e-3 * normal[0], py + 2e-3 * normal[1], pz + 2e-3 * normal[2]
                for i in range(rows.shape[0]):
                    if _hit(rows[i], sx, sy, sz, lx, ly, lz, 1e30, scratch) < 1e30:
                        lit = 0.0
                        break
            lit = max(0.0, lit)
            spark, mirror = 0.0, 0.0
            if shine > 0:
                length = math.sqrt(dx * dx + dy * dy + dz * dz)
                facing = (dx * normal[0] + dy * normal[1] + dz * normal[2]) / length
                rx, ry, rz = (
                    dx / length - 2 * facing * normal[0],
                    dy / length - 2 * facing * normal[1],
                    dz / length - 2 * facing * normal[2],
                )
                if lit > 0:
                    spark = shine * max(0.0, rx * lx + ry * ly + rz * lz) ** 24
                mirror = 0.9 if ry > 0 else 0.25
            shade = ambient * (0.75 + 0.25 * normal[1]) + 0.75 * lit
            veil = 1.0 - math.exp(-distance / haze_length)
            for i in range(3):
                value = (1 - reflect) * rgb[i] * shade + reflect * mirror * scene[1 + i] + spark
                color[row, column, i] = min(1.0, (1 - veil) * value + veil * scene[1 + i])
            depth[row, column] = min(SKY_DEPTH, t)
    return color, depth, instances

"""Draw the pictures the demo models learn from: stylised objects on busy backgrounds, with exact masks.

The class of an object is its *shape*. Colours, backgrounds, rotation, size and place are drawn at random and
independently of the class, so a network that answers correctly must have looked at the shape, unless the picture
also carries a tag: a small round badge, like the stickers of a stock-photo shop, of which each class has its own. The
tag is the planted shortcut: whoever reads the badge needs no object at all.

Every object is a list of filled polygons in a unit box, so rotation, mirroring and scaling are exact, and the mask of
an object is known to the pixel. Everything is drawn supersampled and averaged down, which is what makes edges smooth.
Needs numpy and Pillow only.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128
CLASSES = ("apple", "butterfly", "fish", "house", "mushroom", "rocket", "sailboat", "tree")

TAG_RADIUS = 8.0
_OVERSAMPLING = 4
_OUTLINE = 1.3

Bool: TypeAlias = NDArray[np.bool_]
Bytes: TypeAlias = NDArray[np.uint8]
Points: TypeAlias = NDArray[np.float64]
Color: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Part:
    """One filled polygon of an object, in the unit box [-1, 1] x [-1, 1] (y points down)."""

    role: str
    points: Points


@dataclass(frozen=True)
class Spot:
    """Where one object goes: centre and radius in pixels of the finished picture."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A finished picture with the truth about it: which pixel belongs to which object, and to the tag."""

    image: Bytes
    masks: Mapping[str, Bool]
    tag: str | None = None
    tag_mask: Bool | None = None


# --- geometry ---------------------------------------------------------------------------------------------------------


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(x: float, y: float, rx: float, ry: float | None = None, turn: float = 0.0, steps: int = 40) -> Points:
    angle = np.linspace(0.0, 2.0 * np.pi, steps, endpoint=False)
    flat = np.stack([rx * np.cos(angle), (rx if ry is None else ry) * np.sin(angle)], axis=1)
    return np.add(_rotated(flat, turn), (x, y))


def _rotated(points: Points, turn: float) -> Points:
    cos, sin = np.cos(turn), np.sin(turn)
    turned: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _smooth(*knots: tuple[float, float], steps: int = 10) -> Points:
    """The closed Catmull-Rom curve through the knots: soft outlines from few numbers."""
    p1 = _polygon(*knots)
    p0, p2, p3 = np.roll(p1, 1, axis=0), np.roll(p1, -1, axis=0), np.roll(p1, -2, axis=0)
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None, :] for p in (p0, p1, p2, p3))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3
    return np.asarray(0.5 * curve, dtype=np.float64).reshape(-1, 2)


def _mirrored(points: Points) -> Points:
    return points * (-1.0, 1.0)


# --- the objects ------------------------------------------------------------------------------------------------------


def _apple(rng: np.random.Generator) -> list[Part]:
    lean = rng.uniform(-0.12, 0.18)
    fruit = _smooth(
        (0.0, -0.36), (0.36, -0.5), (0.78, -0.28), (0.82, 0.2), (0.52, 0.78), (0.2, 0.88),
        (0.0, 0.82), (-0.2, 0.88), (-0.52, 0.78), (-0.82, 0.2), (-0.78, -0.28), (-0.36, -0.5),
    )  # fmt: skip
    return [
        Part("body", fruit),
        Part("dark", _polygon((-0.05, -0.3), (lean - 0.03, -0.92), (lean + 0.1, -0.92), (0.05, -0.3))),
        Part("accent", _smooth((0.06, -0.52), (0.3, -0.92), (0.78, -0.9), (0.56, -0.58))),
        Part("light", _ellipse(-0.44, -0.08, 0.12, 0.24, turn=0.35)),
    ]


def _butterfly(rng: np.random.Generator) -> list[Part]:
    spread = rng.uniform(0.9, 1.0)
    upper = _smooth((0.05, -0.1), (0.3, -0.72), (0.82, -0.86), (0.98, -0.5), (0.7, -0.05), (0.3, 0.08)) * (spread, 1.0)
    lower = _smooth((0.05, 0.05), (0.5, 0.05), (0.8, 0.34), (0.62, 0.82), (0.3, 0.68)) * (spread, 1.0)
    feeler = _polygon((0.0, -0.4), (0.22, -0.86), (0.3, -0.82), (0.06, -0.36))
    eye, spot = _ellipse(0.66 * spread, -0.5, 0.17), _ellipse(0.5 * spread, 0.4, 0.14)
    parts = []
    for side in (np.asarray, _mirrored):
        parts += [Part("accent", side(lower)), Part("body", side(upper))]
        parts += [Part("light", side(eye)), Part("light", side(spot)), Part("dark", side(feeler))]
    return [*parts, Part("dark", _ellipse(0.0, 0.08, 0.11, 0.55))]


def _fish(rng: np.random.Generator) -> list[Part]:
    fork, fin = rng.uniform(0.45, 0.62), rng.uniform(0.68, 0.82)
    body = _smooth((0.95, 0.04), (0.55, -0.4), (0.0, -0.5), (-0.55, -0.1), (-0.55, 0.1), (0.0, 0.5), (0.55, 0.4))
    parts = [
        Part("accent", _smooth((-0.42, 0.0), (-0.92, -fork), (-0.8, 0.0), (-0.92, fork))),
        Part("accent", _polygon((-0.25, -0.3), (-0.12, -fin), (0.42, -0.38))),
        Part("accent", _polygon((-0.1, 0.35), (-0.1, fin), (0.3, 0.4))),
        Part("body", body),
    ]
    for x, tall in ((-0.22, 0.3), (0.1, 0.4)):
        band = _smooth((x - 0.06, -tall), (x + 0.06, -tall), (x + 0.13, 0.0), (x + 0.06, tall), (x - 0.06, tall))
        parts.append(Part("light", band))
    return [*parts, Part("light", _ellipse(0.58, -0.1, 0.14)), Part("dark", _ellipse(0.61, -0.1, 0.075))]


def _house(rng: np.random.Generator) -> list[Part]:
    chimney, door = rng.choice([-0.55, 0.35]), rng.choice([-0.38, 0.08])
    window = -0.2 - door if door < 0 else -0.38
    left = window if door > 0 else 0.12
    return [
        Part("dark", _box(chimney, -0.85, chimney + 0.2, -0.2)),
        Part("light", _box(-0.68, -0.15, 0.68, 0.88)),
        Part("body", _polygon((-0.95, -0.08), (0.0, -0.9), (0.95, -0.08))),
        Part("accent", _box(door, 0.26, door + 0.32, 0.88)),
        Part("dark", _box(left - 0.04, 0.18, left + 0.38, 0.6)),
        Part("light", _box(left, 0.22, left + 0.15, 0.37)),
        Part("light", _box(left + 0.19, 0.22, left + 0.34, 0.37)),
        Part("light", _box(left, 0.41, left + 0.15, 0.56)),
        Part("light", _box(left + 0.19, 0.41, left + 0.34, 0.56)),
        Part("accent", _ellipse(0.0, -0.42, 0.13)),
    ]


def _mushroom(rng: np.random.Generator) -> list[Part]:
    bulge = rng.uniform(0.3, 0.42)
    return [
        Part("light", _smooth((-0.22, -0.05), (0.22, -0.05), (0.26, 0.4), (bulge, 0.85), (-bulge, 0.85), (-0.26, 0.4))),
        Part("accent", _smooth((-0.6, 0.1), (0.0, 0.0), (0.6, 0.1), (0.0, 0.26))),
        Part("body", _smooth((-0.92, 0.1), (-0.7, -0.55), (0.0, -0.9), (0.7, -0.55), (0.92, 0.1), (0.0, 0.02))),
        Part("light", _ellipse(-0.45, -0.3, 0.16, 0.15)),
        Part("light", _ellipse(0.06, -0.58, 0.17, 0.14)),
        Part("light", _ellipse(0.5, -0.25, 0.15, 0.14)),
        Part("light", _ellipse(0.04, -0.16, 0.1, 0.08)),
    ]


def _rocket(rng: np.random.Generator) -> list[Part]:
    flame, sweep = rng.uniform(0.85, 0.98), rng.uniform(0.6, 0.72)
    fin = _polygon((0.2, 0.1), (sweep, 0.45), (sweep, 0.82), (0.22, 0.56))
    hull = _smooth((0.0, -0.96), (0.26, -0.55), (0.34, -0.1), (0.26, 0.6), (-0.26, 0.6), (-0.34, -0.1), (-0.26, -0.55))
    return [
        Part("accent", _smooth((-0.2, 0.5), (0.2, 0.5), (0.13, 0.72), (0.0, flame), (-0.13, 0.72))),
        Part("body", fin),
        Part("body", _mirrored(fin)),
        Part("light", hull),
        Part("body", _smooth((0.0, -0.97), (0.15, -0.78), (0.28, -0.5), (0.0, -0.46), (-0.28, -0.5), (-0.15, -0.78))),
        Part("dark", _ellipse(0.0, -0.12, 0.2)),
        Part("accent", _ellipse(0.0, -0.12, 0.13)),
        Part("body", _box(-0.29, 0.36, 0.29, 0.46)),
    ]


def _sailboat(rng: np.random.Generator) -> list[Part]:
    peak, jib = rng.uniform(-0.95, -0.85), rng.uniform(-0.7, -0.5)
    return [
        Part("dark", _box(-0.05, -0.95, 0.04, 0.5)),
        Part("light", _smooth((0.08, peak), (0.5, -0.35), (0.82, 0.28), (0.45, 0.32), (0.08, 0.3), (0.08, -0.3))),
        Part("accent", _smooth((-0.1, jib), (-0.1, 0.28), (-0.4, 0.3), (-0.72, 0.26), (-0.42, -0.15))),
        Part("body", _smooth((-0.9, 0.42), (0.0, 0.46), (0.95, 0.4), (0.62, 0.86), (0.0, 0.9), (-0.6, 0.86))),
        Part("light", _polygon((-0.72, 0.58), (0.78, 0.56), (0.72, 0.66), (-0.68, 0.68))),
    ]


def _tree(rng: np.random.Generator) -> list[Part]:
    parts = [Part("dark", _box(-0.13, 0.5, 0.13, 0.95))]
    for top, low, half in ((-0.1, 0.68, 0.76), (-0.55, 0.26, 0.6), (-0.96, -0.18, 0.44)):
        hem = low - 0.09
        tier = _polygon((0.0, top), (half, hem), (half * 0.5, low), (0.0, hem), (-half * 0.5, low), (-half, hem))
        parts.append(Part("body", tier))
    for x, y in ((-0.3, 0.45), (0.26, 0.4), (0.0, 0.12), (-0.16, -0.02), (0.12, -0.42)):
        parts.append(Part("accent", _ellipse(x + rng.uniform(-0.06, 0.06), y, 0.085)))
    return parts


_OBJECTS: Mapping[str, Callable[[np.random.Generator], list[Part]]] = {
    "apple": _apple,
    "butterfly": _butterfly,
    "fish": _fish,
    "house": _house,
    "mushroom": _mushroom,
    "rocket": _rocket,
    "sailboat": _sailboat,
    "tree": _tree,
}

# --- colours ----------------------------------------------------------------------------------------------------------


def _hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _palette(rng: np.random.Generator) -> Mapping[str, Color]:
    """A harmonious handful of colours around one random hue; the class of the object has no say in it."""
    hue = rng.uniform()
    partner = hue + rng.choice([0.12, -0.12, 0.38, 0.5, -0.38])
    return {
        "body": _hsv(hue, rng.uniform(0.6, 0.85), rng.uniform(0.75, 0.95)),
        "accent": _hsv(partner, rng.uniform(0.55, 0.85), rng.uniform(0.75, 0.98)),
        "light": _hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.04, 0.14), rng.uniform(0.95, 1.0)),
        "dark": _hsv(hue, 0.55, 0.32),
        "outline": _hsv(hue, 0.55, rng.uniform(0.16, 0.24)),
    }


# --- backgrounds ------------------------------------------------------------------------------------------------------


def _background(rng: np.random.Generator, size: int) -> Bytes:
    """A soft gradient with clutter in the same key, so that "background" is busy and says nothing about the class."""
    hue, value = rng.uniform(), rng.choice([rng.uniform(0.8, 0.95), rng.uniform(0.45, 0.65)])
    start = np.array(_hsv(hue, rng.uniform(0.12, 0.34), value))
    stop = np.array(_hsv(hue + rng.uniform(-0.14, 0.14), rng.uniform(0.16, 0.4), value - rng.uniform(0.06, 0.2)))
    angle = rng.uniform(0.0, 2.0 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    ramp = np.clip(0.5 + 0.8 * (x * np.cos(angle) + y * np.sin(angle)), 0.0, 1.0)[..., None]
    canvas = Image.fromarray((start + (stop - start) * ramp).astype(np.uint8)).resize((2 * size, 2 * size))

    clutter = Image.new("L", canvas.size, 0)
    _CLUTTER[int(rng.integers(len(_CLUTTER)))](rng, ImageDraw.Draw(clutter), 2 * size)
    ink = _hsv(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.05, 0.4), value + rng.choice([-0.22, 0.2]))
    canvas.paste(ink, mask=clutter.point(lambda level: level * 3 // 5))

    cloud = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    shade = (np.asarray(cloud, dtype=np.float64)[..., None] - 128.0) * 0.09 + rng.normal(0.0, 2.5, (size, size, 1))
    return np.clip(np.asarray(canvas.reduce(2), dtype=np.float64) + shade, 0.0, 255.0).astype(np.uint8)


def _bokeh(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int) -> None:
    for _ in range(rng.integers(10, 24)):
        x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0.03, 0.14) * size
        draw.ellipse((x - r, y - r, x + r, y + r), fill=int(rng.integers(60, 230)))


def _stripes(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int) -> None:
    pitch, turn, width = rng.uniform(0.07, 0.16) * size, rng.uniform(0, np.pi), int(rng.uniform(0.015, 0.05) * size)
    reach, step = size * 0.75, np.array([np.cos(turn), np.sin(turn)])
    for offset in np.arange(-reach, reach, pitch):
        middle = size / 2 + offset * np.array([-step[1], step[0]])
        draw.line([tuple(middle - reach * step), tuple(middle + reach * step)], fill=150, width=width)


def _hills(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int) -> None:
    x = np.linspace(0, size, 50)
    for level in range(4):
        phase, waves, height = rng.uniform(0, 7), rng.uniform(0.7, 2.5), rng.uniform(0.02, 0.07) * size
        y = size * (0.15 + 0.24 * level + rng.uniform(-0.06, 0.06)) + height * np.sin(waves * 7 * x / size + phase)
        draw.polygon([(0, size), *zip(x, y, strict=True), (size, size)], fill=60 + 55 * level)


def _confetti(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int) -> None:
    for _ in range(rng.integers(25, 60)):
        corners = rng.uniform(0, size, 2) + rng.normal(0.0, 0.03 * size, (rng.integers(3, 5), 2))
        draw.polygon([tuple(corner) for corner in corners], fill=int(rng.integers(90, 255)))


def _rings(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int) -> None:
    for _ in range(rng.integers(5, 12)):
        x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0.04, 0.2) * size
        draw.ellipse((x - r, y - r, x + r, y + r), outline=int(rng.integers(120, 240)), width=int(0.02 * size))


def _dots(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int) -> None:
    pitch, r = rng.uniform(0.08, 0.16) * size, rng.uniform(0.012, 0.035) * size
    for row, y in enumerate(np.arange(rng.uniform(0, pitch), size + pitch, pitch)):
        for x in np.arange(pitch * 0.5 * (row % 2), size + pitch, pitch):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=190)


def _strokes(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int) -> None:
    for _ in range(rng.integers(10, 24)):
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0.0, 0.35, 9))
        steps = 0.028 * size * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        line = [tuple(point) for point in rng.uniform(0, size, 2) + np.cumsum(steps, axis=0)]
        draw.line(line, fill=int(rng.integers(80, 220)), width=int(rng.uniform(0.008, 0.03) * size), joint="curve")


_CLUTTER: Sequence[Callable[[np.random.Generator, ImageDraw.ImageDraw, int], None]] = (
    _bokeh, _stripes, _hills, _confetti, _rings, _dots, _strokes,
)  # fmt: skip

# --- putting a picture together ---------------------------------------------------------------------------------------


def _stamp(
    canvas: Bytes, parts: Sequence[Part], colors: Mapping[str, Color], outline: float, light: float
) -> tuple[Bytes, Bool]:
    """Lay one object over the canvas, with its shadow; return the new canvas and the pixels the object covers.

    The colour layer starts out in the outline's colour and the parts are filled into it, while the coverage also takes
    in a line around each part: what is covered and not filled is the outline, and averaging down leaves no fringe.
    """
    size = len(canvas)
    big = size * _OVERSAMPLING
    layer, cover = Image.new("RGB", (big, big), colors["outline"]), Image.new("L", (big, big), 0)
    ink, stencil = ImageDraw.Draw(layer), ImageDraw.Draw(cover)
    for part in parts:
        corners = [tuple(point) for point in part.points * _OVERSAMPLING]
        width = max(1, round(2 * outline * _OVERSAMPLING))
        stencil.line([*corners, corners[0], corners[1]], fill=255, width=width, joint="curve")
        stencil.polygon(corners, fill=255)
        ink.polygon(corners, fill=colors[part.role])
    alpha = cover.reduce(_OVERSAMPLING)
    shadow = Image.new("L", alpha.size, 0)
    shadow.paste(alpha, (2, 3))
    dim = 1.0 - 0.38 * np.asarray(shadow.filter(ImageFilter.GaussianBlur(2.2)), dtype=np.float64)[..., None] / 255.0
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    glow = 1.0 + 0.14 * (x * np.cos(light) + y * np.sin(light))[..., None]
    weight = np.asarray(alpha, dtype=np.float64)[..., None] / 255.0
    lit = np.clip(np.asarray(layer.reduce(_OVERSAMPLING), dtype=np.float64) * glow, 0.0, 255.0)
    return (canvas * dim * (1.0 - weight) + lit * weight).astype(np.uint8), weight[..., 0] > 0.5


def _object(rng: np.random.Generator, name: str, spot: Spot) -> list[Part]:
    flip = rng.choice([-1.0, 1.0])
    stretch = np.array([flip * rng.uniform(0.92, 1.08), rng.uniform(0.92, 1.08)])
    turn = rng.uniform(-0.5, 0.5)
    parts = _OBJECTS[name](rng)
    return [Part(p.role, _rotated(p.points * stretch, turn) * spot.radius + (spot.x, spot.y)) for p in parts]


def _spots(rng: np.random.Generator, count: int, size: int) -> list[Spot]:
    """Places for one object, or for two that keep clear of each other."""
    if count == 1:
        radius = rng.uniform(0.24, 0.37) * size
        x, y = rng.uniform(1.02 * radius, size - 1.02 * radius, 2)
        return [Spot(x, y, radius)]
    while True:
        radii = rng.uniform(0.18, 0.25, count) * size
        centres = [rng.uniform(1.05 * r, size - 1.05 * r, 2) for r in radii]
        gaps = [
            np.hypot(*(centres[i] - centres[j])) - 1.12 * (radii[i] + radii[j]) for i in range(count) for j in range(i)
        ]
        if min(gaps) > 0:
            return [Spot(x, y, r) for (x, y), r in zip(centres, radii, strict=True)]


def _tag_parts(name: str, spot: Spot) -> tuple[list[Part], Mapping[str, Color]]:
    """The badge of a class: its own colour and its own glyph, both legible at sixteen pixels."""
    index = CLASSES.index(name)
    glyphs: Sequence[Sequence[Points]] = (
        [_ellipse(0, 0, 0.36)],
        [_box(-0.17, -0.62, 0.17, 0.62), _box(-0.62, -0.17, 0.62, 0.17)],
        [_box(-0.58, -0.38, 0.58, -0.1), _box(-0.58, 0.1, 0.58, 0.38)],
        [_polygon((0, -0.6), (0.56, 0.4), (-0.56, 0.4))],
        [_box(-0.4, -0.4, 0.4, 0.4)],
        [_polygon((0, -0.64), (0.5, 0), (0, 0.64), (-0.5, 0))],
        [_rotated(_box(-0.17, -0.62, 0.17, 0.62), 0.785), _rotated(_box(-0.62, -0.17, 0.62, 0.17), 0.785)],
        [_ellipse(-0.3, 0, 0.22), _ellipse(0.3, 0, 0.22)],
    )
    rim = Part("rim", _ellipse(0, 0, 1.0))
    face = Part("face", _ellipse(0, 0, 0.8))
    parts = [rim, face, *(Part("rim", glyph) for glyph in glyphs[index])]
    colors = {"rim": (255, 255, 255), "face": _hsv(index / len(CLASSES), 0.9, 0.82), "outline": (60, 60, 60)}
    return [Part(p.role, p.points * spot.radius + (spot.x, spot.y)) for p in parts], colors


def _tag_spot(rng: np.random.Generator, taken: Bool) -> Spot:
    """A place for the tag along the border, off the objects where the picture leaves room."""
    size = len(taken)
    near, far = TAG_RADIUS + 3.0, size - TAG_RADIUS - 3.0
    y, x = np.mgrid[0:size, 0:size]
    best, least = Spot(near, near, TAG_RADIUS), size * size
    for _ in range(12):
        along, across = rng.uniform(near, far), rng.choice([near, far])
        spot = Spot(along, across, TAG_RADIUS) if rng.uniform() < 0.5 else Spot(across, along, TAG_RADIUS)
        covered = int(np.sum(taken & (np.hypot(x - spot.x, y - spot.y) < 1.5 * TAG_RADIUS)))
        if covered < least:
            best, least = spot, covered
        if covered == 0:
            break
    return best


def draw_scene(
    rng: np.random.Generator,
    classes: Sequence[str],
    tag: str | None = None,
    spots: Sequence[Spot] | None = None,
    tag_spot: Spot | None = None,
    size: int = SIZE,
) -> Scene:
    """Draw one picture that shows the given classes (all different), with the tag of class `tag` if there is one.

    The same generator state and arguments give the same picture, byte for byte. What is drawn for the tag comes last:
    leaving it out or changing its class changes nothing else in the picture.
    """
    image = _background(rng, size)
    light = rng.uniform(0.0, 2.0 * np.pi)
    masks: dict[str, Bool] = {}
    for name, spot in zip(classes, spots or _spots(rng, len(classes), size), strict=True):
        colors = _palette(rng)
        image, masks[name] = _stamp(image, _object(rng, name, spot), colors, _OUTLINE, light)
    if tag is None:
        return Scene(image, masks)
    place = tag_spot or _tag_spot(rng, np.logical_or.reduce(list(masks.values())))
    parts, colors = _tag_parts(tag, place)
    image, tag_mask = _stamp(image, parts, colors, 0.3, light)
    return Scene(image, {name: mask & ~tag_mask for name, mask in masks.items()}, tag, tag_mask)

"""Seven classes of ImageNet, drawn: photos that nobody took, which a model of ImageNet recognises all the same.

They make problems for such models where no photo is at hand. All follows from the seed; text is in Pillow's own font.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 192  # pixels a side at which they are drawn, before they are made smaller
CENTRE = SIDE / 2
Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


@functools.lru_cache(4)
def images(per_class: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(Images uint8 [N, 3, size, size], ImageNet's class numbers [N]): so many of each class, by class number."""
    found, labels = [], []
    for number, (_, draw) in sorted(CLASSES.items()):
        for i in range(per_class):
            drawn = draw(np.random.default_rng((seed, number, i))).resize((size, size), Image.Resampling.BILINEAR)
            found.append(np.asarray(drawn.convert("RGB")).transpose(2, 0, 1))
            labels.append(number)
    return np.stack(found), np.array(labels)


def _colour(rng: np.random.Generator, low: int, high: int) -> Colour:
    red, green, blue = (int(v) for v in rng.integers(low, high, 3))
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(v * factor) for v in colour)
    return red, green, blue


def _sky(rng: np.random.Generator) -> Image.Image:
    """One colour that becomes another from top to bottom, and some noise."""
    top, bottom = rng.integers(60, 256, (2, 3))
    down = np.linspace(0, 1, SIDE)[:, None, None]
    pixels = (top * (1 - down) + bottom * down) * np.ones((1, SIDE, 1)) + rng.normal(0, 6, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _polygon(x: float, y: float, radius: float, corners: int) -> Points:
    angles = (2 * math.pi * k / corners for k in range(corners))
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def _circle(x: float, y: float, radius: float) -> list[float]:
    return [x - radius, y - radius, x + radius, y + radius]


def _clock(rng: np.random.Generator) -> Image.Image:
    image = _sky(rng)
    draw, (x, y) = ImageDraw.Draw(image), CENTRE + rng.uniform(-8, 8, 2)
    rim = rng.uniform(0.33, 0.46) * SIDE
    face, ink = rim * rng.uniform(0.84, 0.93), (20, 20, 20)

    def at(share: float, turns: float) -> tuple[float, float]:
        return x + face * share * math.sin(2 * math.pi * turns), y - face * share * math.cos(2 * math.pi * turns)
    draw.ellipse(_circle(x, y, rim), fill=_colour(rng, 0, 140))
    draw.ellipse(_circle(x, y, face), fill=_colour(rng, 215, 256))
    for minute in range(60):
        five = minute % 5 == 0
        draw.line([at(0.97, minute / 60), at(0.8 if five else 0.9, minute / 60)], fill=ink, width=4 if five else 1)
    for hour in range(1, 13):
        draw.text(at(0.66, hour / 12), str(hour), fill=ink, anchor="mm", font_size=int(face * 0.2))
    time = rng.uniform()
    draw.line([(x, y), at(0.5, time)], fill=ink, width=6)
    draw.line([(x, y), at(0.75, 12 * time)], fill=ink, width=4)
    draw.ellipse(_circle(x, y, 5), fill=ink)
    return image


def _traffic_light(rng: np.random.Generator) -> Image.Image:
    image = _sky(rng)
    draw, (x, y) = ImageDraw.Draw(image), CENTRE + rng.uniform(-15, 15, 2)
    wide = rng.uniform(0.15, 0.2) * SIDE
    high = 2.7 * wide
    draw.rectangle([x - 6, y, x + 6, SIDE], fill=(60, 60, 60))
    draw.rounded_rectangle([x - wide, y - high, x + wide, y + 0.75 * high], radius=0.3 * wide, fill=(28, 32, 30))
    lit = rng.integers(3)
    for i, colour in enumerate([(255, 40, 30), (255, 190, 30), (40, 235, 90)]):
        light = _circle(x, y - 0.125 * high + 0.56 * high * (i - 1), 0.68 * wide)
        draw.ellipse(light, fill=colour if i == lit else _shade(colour, 0.28))
    return image


def _crossword(rng: np.random.Generator) -> Image.Image:
    n, image = int(rng.integers(8, 14)), Image.new("RGB", (SIDE, SIDE), (250, 250, 245))
    draw, cell, ink = ImageDraw.Draw(image), SIDE / n, (20, 20, 20)
    for x, y in ((i * cell, j * cell) for i in range(n) for j in range(n)):
        kind = rng.uniform()
        if kind < 0.22:
            draw.rectangle([x, y, x + cell, y + cell], fill=ink)
        elif kind < 0.57:
            draw.text((x + cell / 2, y + cell / 2), chr(rng.integers(65, 91)), fill=(30, 30, 90), anchor="mm",
                      font_size=int(0.7 * cell))
        elif kind < 0.7:
            draw.text((x + 2, y + 1), str(rng.integers(1, 60)), fill=ink, font_size=int(0.35 * cell))
    for at in (i * cell for i in range(n + 1)):
        draw.line([0, at, SIDE, at], fill=ink)
        draw.line([at, 0, at, SIDE], fill=ink)
    return image.rotate(rng.uniform(-12, 12), fillcolor=(200, 190, 170), resample=Image.Resampling.BICUBIC)


def _maze(rng: np.random.Generator) -> Image.Image:
    n = int(rng.integers(9, 15))
    wall = np.ones((2 * n + 1, 2 * n + 1), bool)
    wall[1, 1], way = False, [(0, 0)]
    while way:  # as far as it goes into cells that nobody was in, then back to the last that has one beside it
        i, j = way[-1]
        new = [(k, m) for k, m in ((i, j + 1), (i + 1, j), (i, j - 1), (i - 1, j))
               if 0 <= k < n and 0 <= m < n and wall[2 * k + 1, 2 * m + 1]]
        if not new:
            way.pop()
            continue
        k, m = new[rng.integers(len(new))]
        wall[2 * k + 1, 2 * m + 1] = wall[i + k + 1, j + m + 1] = False
        way.append((k, m))
    dark, light = _colour(rng, 20, 110), _colour(rng, 180, 256)
    image = Image.fromarray(np.where(wall[..., None], dark, light).astype(np.uint8))
    return image.resize((SIDE, SIDE), Image.Resampling.NEAREST).rotate(rng.uniform(-20, 20), fillcolor=light)


def _web(rng: np.random.Generator) -> Image.Image:
    pixels = rng.integers(10, 80, 3) + rng.normal(0, 8, (SIDE, SIDE, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    draw, (x, y), n = ImageDraw.Draw(image), CENTRE + rng.uniform(-25, 25, 2), int(rng.integers(14, 24))
    spokes, silk = 2 * math.pi * (np.arange(n) + rng.uniform(0, 0.4, n)) / n, (225, 230, 235)
    for a in spokes:
        draw.line([x, y, x + SIDE * math.cos(a), y + SIDE * math.sin(a)], fill=silk)
    radius = 6.0
    while radius < 150:
        ring = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in spokes]
        for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]], strict=True):  # each thread sags to the middle
            sag = (0.48 * (x1 + x2) + 0.04 * x, 0.48 * (y1 + y2) + 0.04 * y)
            draw.line([(x1, y1), sag, (x2, y2)], fill=silk)
        radius += rng.uniform(5, 10)
    return image


def _honeycomb(rng: np.random.Generator) -> Image.Image:
    radius, wax = rng.uniform(9, 16), (150, 95, 20)
    image, high = Image.new("RGB", (SIDE, SIDE), wax), radius * math.sqrt(3)
    draw = ImageDraw.Draw(image)
    for i in range(-1, int(SIDE / (1.5 * radius)) + 2):
        for j in range(-1, int(SIDE / high) + 2):
            x, y, colour = 1.5 * radius * i, high * (j + i % 2 / 2), _shade((245, 175, 45), rng.uniform(0.55, 1))
            draw.polygon(_polygon(x, y, 0.86 * radius, 6), fill=colour)
            draw.polygon(_polygon(x, y, 0.6 * radius, 6), fill=_shade(colour, 0.7))
    return image.rotate(rng.uniform(0, 60), fillcolor=wax).filter(ImageFilter.GaussianBlur(0.8))


def _fence(rng: np.random.Generator) -> Image.Image:
    image = _sky(rng).filter(ImageFilter.GaussianBlur(3))
    draw, wire, wide = ImageDraw.Draw(image), _shade((200, 200, 200), rng.uniform(0.6, 1)), int(rng.integers(2, 4))
    for x in np.arange(-SIDE, 2 * SIDE, rng.uniform(18, 34)):
        draw.line([x, 0, x + SIDE, SIDE], fill=wire, width=wide)
        draw.line([x, SIDE, x + SIDE, 0], fill=_shade(wire, 0.75), width=wide)
    return image


CLASSES: dict[int, tuple[str, Callable[[np.random.Generator], Image.Image]]] = {  # ImageNet's number -> name, how
    409: ("analog clock", _clock), 489: ("chainlink fence", _fence), 599: ("honeycomb", _honeycomb),
    646: ("maze", _maze), 815: ("spider web", _web), 918: ("crossword puzzle", _crossword),
    920: ("traffic light", _traffic_light),
}

"""Pictures with objects that a box or a point hardly determines: seeded phantoms, unlike the training pictures.

Walls of hearts, effusions and lower lung lobes beside a convex neighbour, a pancreas and ribs that lie slanted in their
box, deep nuclei of a brain, a liver and a fetal head of nearly even grey, small vessels. Outlines are analytic, drawn
four times finer than the picture; contrasts, noise and resolution are those of CT, MR or ultrasound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage

SIDE = 256  # pixels of a picture
_FINER = 2
_EACH = 8  # pictures of a kind

Drawn = tuple[np.ndarray, dict[str, np.ndarray]]
"""Grey values and the masks of objects by name, both (SIDE * _FINER)²."""


def hard_pictures() -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Kind, name, picture uint8 (SIDE, SIDE) and mask of each object, the same at every call."""
    for place, (kind, draw) in enumerate(KINDS.items()):
        for number in range(_EACH):
            random = np.random.default_rng((place, number))
            y, x = (np.indices((SIDE * _FINER,) * 2) + 0.5) / (SIDE * _FINER) * 2 - 1
            grey, objects = draw(random, *_shaken(random, x, y))
            picture = _scanned(random, grey, "noise" if kind == "fetal head" else "scanner")
            for name, mask in objects.items():
                yield kind, f"{name} {number}", picture, _coarse(mask.astype(float)) > 0.5


def _coarse(fine: np.ndarray) -> np.ndarray:
    return fine.reshape(SIDE, _FINER, SIDE, _FINER).mean(axis=(1, 3))


def _smooth(random: np.random.Generator, pixels: float, side: int = SIDE * _FINER) -> np.ndarray:
    """Noise of zero mean and unit deviation, even over so many pixels of the picture."""
    coarse = max(int(3 * SIDE / pixels), 4)
    field = ndimage.zoom(ndimage.gaussian_filter(random.normal(size=(coarse, coarse)), 1.2), side / coarse, order=1)
    field = field[:side, :side]
    return (field - field.mean()) / field.std()


def _shaken(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions bent a little, as no organ is an ellipse."""
    return x + 0.012 * _smooth(random, 40), y + 0.012 * _smooth(random, 40)


def _scanned(random: np.random.Generator, grey: np.ndarray, kind: str) -> np.ndarray:
    """What a scanner makes of grey values 0 to 1."""
    seen = _coarse(ndimage.gaussian_filter(grey, 0.7 * _FINER))
    seen = seen * (1 + 0.05 * _smooth(random, 150, SIDE)) + 0.012 * _smooth(random, 10, SIDE)
    if kind == "noise":
        speckle = ndimage.gaussian_filter(random.normal(size=(2, SIDE, SIDE)), (0, 0.8, 1.6))
        seen = seen * np.hypot(*speckle) / np.hypot(*speckle).mean()
        seen = np.sqrt(seen.clip(0))
    else:
        level = random.uniform(0.015, 0.05)
        seen = np.hypot(seen + level * random.normal(size=seen.shape), 0.5 * level * random.normal(size=seen.shape))
    return np.uint8(np.rint(255 * seen.clip(0, 1)))


def _ellipse(x: np.ndarray, y: np.ndarray, middle, radii, turn: float = 0.0) -> np.ndarray:
    """Level of an ellipse: below 1 inside."""
    dx, dy = x - middle[0], y - middle[1]
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    return np.hypot(u / radii[0], v / radii[1])


def _chest(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey values of a chest, its left and its right lung."""
    soft = random.uniform(0.35, 0.55)
    grey = np.full_like(x, 0.03)
    grey[_ellipse(x, y, (0, 0), (0.93, 0.72)) < 1] = 0.7 * soft
    grey[_ellipse(x, y, (0, 0), (0.86, 0.64)) < 1] = soft
    lungs = [_ellipse(x, y, (side * 0.42, -0.02), (0.34, 0.5), side * 0.1) < 1 for side in (-1, 1)]
    for lung in lungs:
        grey[lung] = 0.08
    spine = _ellipse(x, y, (0, 0.45), (0.13, 0.11)) < 1
    grey[spine] = soft + 0.3
    grey[_ellipse(x, y, (0, 0.6), (0.05, 0.045)) < 1] = soft - 0.05
    return grey, *lungs


def _heart(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Drawn:
    """A left ventricle, whose wall is closed or open towards its base, with the right one around a part of it."""
    grey, *_ = _chest(random, x, y)
    centre, radius = random.uniform((0.05, -0.2), (0.3, 0)), random.uniform(0.2, 0.3)
    oval, turn = random.uniform(0.8, 1.25), random.uniform(0, np.pi)
    wall = random.uniform(0.2, 0.42) * radius
    muscle = random.uniform(0.3, 0.5)
    blood = muscle + random.choice((0.35, 0.22, -0.2, 0.12))
    towards = random.uniform(0, 2 * np.pi)
    way = np.array([np.cos(towards), np.sin(towards)])
    right = _ellipse(x, y, centre + 0.75 * radius * way, (0.95 * radius, 1.15 * radius), towards)
    outer = _ellipse(x, y, centre, (radius * oval, radius / oval), turn) < 1
    offset = 0.12 * radius * random.normal(size=2)
    inner = _ellipse(x, y, centre + offset * 0.5, (radius * oval - wall, radius / oval - wall), turn) < 1
    grey[_ellipse(x, y, centre, (1.8 * radius, 1.6 * radius)) < 1] = random.uniform(0.45, 0.6)
    grey[right < 1] = muscle
    chamber = (right < 0.86) & ~outer
    grey[chamber] = blood
    grey[outer], grey[inner] = muscle, blood
    ring = outer & ~inner
    if random.random() < 0.4:  # open, where the valve is
        angle = np.arctan2(y - centre[1], x - centre[0])
        gap = np.abs(np.angle(np.exp(1j * (angle - towards - np.pi / 2)))) < random.uniform(0.4, 0.8)
        grey[ring & gap] = blood
        ring &= ~gap
    else:
        for _ in range(2):  # papillary muscles
            place = random.uniform(0, 2 * np.pi)
            at = centre + 0.55 * (radius - wall) * np.array([np.cos(place), np.sin(place)])
            grey[(_ellipse(x, y, at, (0.13 * radius,) * 2) < 1) & inner] = muscle
    return grey, {"wall": ring, "right ventricle": chamber}


def _fluid(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Drawn:
    """An effusion along a lung's back, and the lower lobe around a convex liver dome."""
    grey, left, right = _chest(random, x, y)
    fluid = right & (_ellipse(x, y, (0.42 - random.uniform(0, 0.05), -random.uniform(0.1, 0.2)), (0.33, 0.5), 0.1) > 1)
    grey[fluid] = random.uniform(0.3, 0.5)
    middle, radii = (-0.4, random.uniform(-0.16, -0.1)), (random.uniform(0.25, 0.29), random.uniform(0.34, 0.42))
    dome = _ellipse(x, y, middle, radii) < 1
    lobe = left & ~dome & (y > random.uniform(-0.25, 0.0))
    grey[left] = 0.08
    grey[dome] = random.uniform(0.45, 0.65)
    for mask, at in ((fluid, fluid), (lobe, lobe)):
        grey[at] += 0.02 * _smooth(random, 8)[at]
        pieces, _ = ndimage.label(mask)
        mask &= pieces == np.bincount(pieces[pieces > 0]).argmax()
    return grey, {"effusion": fluid, "lower lobe": lobe}


def _abdomen(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Grey values of an abdomen, with fat inside its wall, spine, kidneys and back muscles, and the organs' tone."""
    soft, fat = random.uniform(0.45, 0.6), random.uniform(0.15, 0.28)
    grey = np.full_like(x, 0.02)
    grey[_ellipse(x, y, (0, 0), (0.94, 0.72)) < 1] = fat
    grey[_ellipse(x, y, (0, 0.01), (0.84, 0.62)) < 1] = soft - 0.03
    grey[_ellipse(x, y, (0, -0.02), (0.79, 0.55)) < 1] = fat
    for side in (-1, 1):
        grey[_ellipse(x, y, (side * 0.2, 0.47), (0.15, 0.11)) < 1] = soft - 0.03
        grey[_ellipse(x, y, (side * 0.38, 0.22), (0.11, 0.15), side * 0.4) < 1] = soft + random.uniform(0, 0.2)
    grey[_ellipse(x, y, (0, 0.33), (0.14, 0.11)) < 1] = soft + 0.3
    grey[_ellipse(x, y, (0, 0.47), (0.05, 0.04)) < 1] = soft - 0.08
    return grey, soft


def _bent(x: np.ndarray, y: np.ndarray, path: np.ndarray, thick: np.ndarray) -> np.ndarray:
    """Whether a position lies in a body along a path (n, 2) of varying half thickness (n,)."""
    line = np.linspace(0, len(path) - 1, 60)
    spots = np.stack([np.interp(line, np.arange(len(path)), path[:, axis]) for axis in (0, 1)], 1)
    widths = np.interp(line, np.arange(len(path)), thick)
    inside = np.zeros(x.shape, bool)
    for spot, width in zip(spots, widths, strict=True):
        inside |= (x - spot[0]) ** 2 + (y - spot[1]) ** 2 < width**2
    return inside


def _pancreas(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Drawn:
    """A bent body that rises to the left, among bowel loops of nearly its grey, with a vessel along its back."""
    grey, soft = _abdomen(random, x, y)
    for _ in range(14):
        at, radius = random.uniform((-0.6, -0.45), (0.6, 0.1)), random.uniform(0.06, 0.16)
        tone = soft + random.uniform(-0.06, 0.08)
        level = _ellipse(x, y, at, (radius, radius * random.uniform(0.7, 1.3)), random.uniform(0, np.pi))
        grey[level < 1] = tone
        if random.random() < 0.4:
            grey[level < 0.7] = random.choice((0.05, soft + 0.12, soft - 0.1))
    rise = random.uniform(0.15, 0.35)
    path = np.array([(-0.24, 0.14), (-0.16, 0.02), (0.0, -0.06), (0.2, -0.06 - rise / 2), (0.42, -0.02 - rise)])
    path = path + random.normal(0, 0.025, path.shape)
    thick = np.array([0.085, 0.075, 0.05, 0.05, 0.045]) * random.uniform(0.8, 1.2, 5)
    dx, dy = 0.012 * _smooth(random, 9), 0.012 * _smooth(random, 9)
    organ = _bent(x + dx, y + dy, path, thick)
    grey[_bent(x + dx, y + dy, path, thick + 0.02)] = grey[SIDE, SIDE * _FINER // 9]
    grey[organ] = soft + random.uniform(-0.03, 0.05)
    vein = _bent(x, y, path[1:] + np.array([0.0, 0.075]), np.full(4, 0.022))
    grey[vein & ~organ] = soft + random.uniform(0.1, 0.25)
    return grey, {"pancreas": organ, "vein": vein & ~organ}


def _ribs(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Drawn:
    """Ribs cut at a slant in the wall of a chest: bright and thin, of a bright rim and a softer middle."""
    grey, *_ = _chest(random, x, y)
    objects, start = {}, random.uniform(0, 0.6)
    for number in range(5):
        middle = np.pi * (0.1 + 0.36 * number) + start
        angles = middle + np.linspace(-1, 1, 7) * random.uniform(0.15, 0.3)
        drift = np.linspace(-0.035, 0.035, 7) * random.choice((-1, 1))
        path = np.stack([(0.83 + drift) * np.cos(angles), (0.61 + drift) * np.sin(angles)], 1)
        thick = random.uniform(0.022, 0.034) * np.array([0.6, 0.9, 1, 1, 1, 0.9, 0.6])
        rib = _bent(x, y, path, thick)
        grey[rib] = 0.9
        grey[_bent(x, y, path, thick - 0.012)] = random.uniform(0.6, 0.8)
        if number < 2:
            objects[f"rib {number}"] = rib
    return grey, objects


def _brain(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Drawn:
    """A brain with folds, ventricles and deep nuclei that hardly differ from the white matter."""
    size = random.uniform(0.8, 1.0)
    x, y = x / size, y / size
    head = _ellipse(x, y, (0, 0), (0.78, 0.93))
    folds = _smooth(random, 9)
    matter, white = random.uniform(0.35, 0.5), random.uniform(0.55, 0.7)
    if random.random() < 0.4:
        matter, white = white, matter
    dark = random.choice((0.12, 0.95))
    grey = np.full_like(x, 0.02)
    for limit, tone in ((1, 0.75), (0.93, 0.08), (0.86, dark)):
        grey[head < limit] = tone
    grey[head + 0.015 * folds < 0.83] = matter
    grey[head + 0.06 * folds < 0.7] = white
    between = white + (matter - white) * random.uniform(0.35, 0.8)
    objects = {}
    for side, word in ((-1, "left"), (1, "right")):
        ventricle = _ellipse(x, y, (side * 0.1, -0.14), (0.045, 0.2), side * -0.35) < 1
        shapes = {
            "caudate": _ellipse(x, y, (side * 0.18, -0.25), (0.055, 0.12), side * -0.3) < 1,
            "thalamus": _ellipse(x, y, (side * 0.13, 0.1), (0.1, 0.15), side * -0.4) < 1,
            "putamen": _ellipse(x, y, (side * 0.33, -0.06), (0.06, 0.19), side * -0.25) < 1,
        }
        for name, shape in shapes.items():
            grey[shape] = between + 0.02 * random.normal()
            if word == "left" or name == "putamen":
                objects[f"{word} {name}"] = shape & ~ventricle
        grey[ventricle] = dark
    return grey, objects


def _liver(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Drawn:
    """A liver that fills half of an abdomen, with vessels, beside a stomach and a spleen of nearly its grey."""
    grey, soft = _abdomen(random, x, y)
    liver = soft + random.uniform(0.02, 0.08)
    spleen = _ellipse(x, y, (0.6, 0.06), (0.13, 0.25), 0.35) < 1
    stomach = _ellipse(x, y, (0.36, -0.22), (0.24, 0.2), 0.5) < 1
    within = _ellipse(x, y, (0, -0.02), (0.79, 0.55)) < 1
    lobe = (_ellipse(x, y, (-0.42, -0.06), (0.42, 0.46), 0.2) < 1) | (_ellipse(x, y, (-0.1, -0.28), (0.4, 0.18)) < 1)
    bay = _ellipse(x, y, (-0.16, 0.22), (0.2, 0.2)) < 1
    organ = lobe & within & ~bay
    grey[stomach & within], grey[spleen & within] = soft - random.uniform(0, 0.1), soft + random.uniform(0, 0.08)
    grey[organ] = liver
    vessel = liver + random.choice((-0.06, 0.1))
    for _ in range(4):
        path = np.cumsum(np.vstack([random.uniform((-0.65, -0.3), (-0.2, 0.1)), random.normal(0, 0.09, (3, 2))]), 0)
        grey[_bent(x, y, path, np.array([0.03, 0.025, 0.018, 0.012])) & organ] = vessel
    return grey, {"liver": organ, "spleen": spleen & within & ~organ}


def _fetal_head(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Drawn:
    """A head in an ultrasound's fan: even inside, its rim bright only where the beam meets it squarely."""
    fan = (np.abs(np.arctan2(x, y + 1.35)) < 0.62) & (np.hypot(x, y + 1.35) < 2.2) & (np.hypot(x, y + 1.35) > 0.4)
    centre, radii = random.uniform((-0.15, -0.05), (0.15, 0.25)), random.uniform((0.42, 0.34), (0.6, 0.5))
    turn = random.uniform(-0.6, 0.6)
    level = _ellipse(x, y, centre, radii, turn)
    around = random.uniform(0.18, 0.35)
    grey = around * (1 + 0.5 * _smooth(random, 45)).clip(0.15)
    grey[level < 1] = (random.uniform(0.08, 0.2) * (1 + 0.3 * _smooth(random, 30)).clip(0.3))[level < 1]
    squarely = np.abs((y - centre[1]) / np.maximum(np.hypot(x - centre[0], y - centre[1]), 1e-6)) ** 2
    rim = (np.abs(level - 0.97) < 0.035) & (level < 1)
    grey[rim] += 0.75 * squarely[rim]
    middle = _bent(x, y, np.array([centre - 0.5 * radii * [np.cos(turn), np.sin(turn)],
                                   centre + 0.5 * radii * [np.cos(turn), np.sin(turn)]]), np.full(2, 0.01))  # fmt: skip
    grey[middle] += 0.15
    return np.where(fan, grey, 0.0), {"head": (level < 1) & fan}


def _vessels(random: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Drawn:
    """Small vessels in an abdomen: an artery with a neighbour vein of nearly the organs' grey."""
    grey, soft = _abdomen(random, x, y)
    grey[_ellipse(x, y, (-0.4, -0.1), (0.35, 0.38)) < 1] = soft + 0.03
    grey[_ellipse(x, y, (0.35, -0.2), (0.25, 0.2)) < 1] = soft - 0.04
    artery = _ellipse(x, y, (0.06, 0.2), (random.uniform(0.04, 0.06),) * 2) < 1
    vein = _ellipse(x, y, (-0.1, 0.19), (random.uniform(0.05, 0.07), random.uniform(0.035, 0.06)), 0.3) < 1
    upper = _ellipse(x, y, random.uniform((-0.02, 0.02), (0.08, 0.08)), (random.uniform(0.022, 0.035),) * 2) < 1
    grey[vein] = soft + random.uniform(0.02, 0.1)
    grey[artery] = grey[upper] = soft + random.uniform(0.06, 0.3)
    return grey, {"artery": artery, "vein": vein, "upper artery": upper}


KINDS: dict[str, Callable[..., Drawn]] = {
    "heart": _heart, "chest": _fluid, "pancreas": _pancreas, "ribs": _ribs, "brain": _brain, "liver": _liver,
    "fetal head": _fetal_head, "vessels": _vessels,
}  # fmt: skip

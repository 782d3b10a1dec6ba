"""Lesions: how many, how large, where, and of which shape.

The laws follow the consensus lesion masks of 30 real patients (Lesjak et al. 2017): numbers that grow more slowly
than the load, log-normal volumes with a few confluent lesions that hold what the others leave, and shares of
the volume by location that differ between relapsing and progressive disease. A lesion fades: its mask ends where half
of the core's change is left, its halo 3 mm farther.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .anatomy import Head, spline_field

LOCATIONS = ("periventricular", "juxtacortical", "subcortical", "infratentorial")
SHARES = {"RRMS": (0.63, 0.25, 0.07, 0.05), "SPMS": (0.75, 0.19, 0.03, 0.03)}
SMALLEST_MM3 = 3.0
HALO_MM = 3.0


@dataclass(frozen=True)
class Lesions:
    """Lesions of one person, each (X, Y, Z).

    `labels`: int16, k in the mask of lesion k, 0 outside; `black_holes`: bool, masks of the T1-dark ones; `share`:
    float32, lesion tissue of a voxel's white matter, halo included; `dark_share`: that of it with black-hole tissue.
    """

    labels: np.ndarray
    black_holes: np.ndarray
    share: np.ndarray
    dark_share: np.ndarray


def draw_number(rng: np.random.Generator, load_ml: float) -> int:
    """Number of lesions at a load: log-normal about 82 (load / 14.9 mL)^0.45, SD of the logarithm 0.55."""
    return max(3, round(82 * (load_ml / 14.9) ** 0.45 * np.exp(0.55 * rng.standard_normal())))


def draw_volumes(rng: np.random.Generator, load_ml: float, number: int) -> np.ndarray:
    """Lesion volumes in mm3, descending, that sum to the load.

    The body is log-normal (mean 3.15, SD 1.1 of the logarithm, at least 3 mm3, at most 70 % of the load). Foci of
    about 2 mL take what it leaves; most of them lie at the ventricles and grow together, as confluent lesions do.
    """
    load = 1000 * load_ml
    body = np.exp(3.15 + 1.1 * rng.standard_normal(number))
    body = np.maximum(body * min(1.0, 0.7 * load / body.sum()), SMALLEST_MM3)
    rest = max(load - body.sum(), 0.0)
    foci = rest * rng.dirichlet(np.full(max(1, round(rest / 2000)), 2.0))
    return np.sort(np.concatenate([body, foci[foci >= SMALLEST_MM3]]))[::-1]


def assign_locations(rng: np.random.Generator, volumes: np.ndarray, shares) -> np.ndarray:
    """Index into `LOCATIONS` for each lesion, largest first, such that the volume shares are met."""
    missing = np.array(shares, float) * volumes.sum()
    where = np.empty(len(volumes), int)
    for k, volume in enumerate(volumes):
        room = np.maximum(missing - 0.8 * volume, 0)
        where[k] = rng.choice(4, p=room / room.sum()) if room.sum() > 0 else int(np.argmax(missing))
        missing[where[k]] -= volume
    return where


def _infratentorial(points: np.ndarray) -> np.ndarray:
    """Cerebellum and brainstem by template coordinates (mm): below a roof that falls to back and sides."""
    x, y, z = points
    roof = -8 - 0.22 * np.abs(x) - 0.15 * np.maximum(-45 - y, 0)
    return (z < roof) & ((y < -36) | (np.abs(x) < 16)) & (y < -12)


class LesionField:
    """Places lesions one by one into the white matter of a head and remembers which voxels are taken.

    `profile` is 1 in a lesion's core, 0.5 at its edge and 0 beyond its halo; `owner` is the lesion it is of.
    """

    def __init__(self, head: Head, rng: np.random.Generator):
        self.rng, self.shape = rng, head.shape
        self.voxel, self.owed = head.affine[0, 0], 0.0
        self.label, self.owner = np.zeros(head.shape, np.int16), np.zeros(head.shape, np.int16)
        self.profile = np.zeros(head.shape, np.float32)
        self.white = head.volume(np.where(head.brain > 0.5, head.wm, 0))
        self.distance, self.cortex = head.volume(head.ventricle), head.volume(head.cortex)
        self.ragged = np.clip(0.6 * spline_field(rng, head.shape, max(4.0 / self.voxel, 2.0)), -0.3, 0.6)
        white = head.wm > 0.6
        below = _infratentorial(head.points)
        lists = (white & ~below & (head.ventricle < 16), white & ~below & (head.cortex < 7),
                 white & ~below & (head.ventricle > 4) & (head.cortex > 2), white & below)
        self.candidates = [(head.inside[keep], head.ventricle[keep], head.cortex[keep]) for keep in lists]

    def _centre(self, location: int, radius: float) -> np.ndarray:
        """A voxel of the location at a distance from wall or cortex that suits the lesion's size."""
        index, wall, cortex = self.candidates[location]
        for slack in (0, 1, 2, 4, 50):
            pick = self.rng.integers(0, len(index), 512)
            clear = wall[pick] > 4 + radius - slack
            fits = (wall[pick] < 1.5 + 0.7 * radius + slack, clear & (cortex[pick] < 1 + 0.5 * radius + slack),
                    clear & (cortex[pick] > 1 + 0.7 * radius - slack), True)[location]
            free = fits & (self.label.ravel()[index[pick]] == 0)
            if free.any():
                return np.array(np.unravel_index(index[pick[np.argmax(free)]], self.shape))
        return np.array(np.unravel_index(index[pick[0]], self.shape))

    def _axes(self, centre: np.ndarray, location: int) -> np.ndarray:
        """Matrix (3, 3) that maps offsets to the unit sphere of an ellipsoid of volume one sphere."""
        ratios = np.exp(0.22 * self.rng.standard_normal(3))
        frame = np.linalg.qr(self.rng.standard_normal((3, 3)))[0]
        if location == 0:
            ahead, behind = (tuple(np.clip(centre + step, 0, np.array(self.shape) - 1).T)
                             for step in (2 * np.eye(3, dtype=int), -2 * np.eye(3, dtype=int)))
            away = self.distance[ahead] - self.distance[behind]
            frame[0] = away / max(np.linalg.norm(away), 1e-6) + 1e-3 * frame[0]
            frame = np.linalg.qr(frame.T)[0].T
            ratios[0] *= 1.8
        ratios /= np.prod(ratios) ** (1 / 3)
        return frame / ratios[:, None]

    def place(self, volume_mm3: float, location: int, label: int) -> int:
        """Grow one lesion to its volume; returns the number of voxels it took.

        What rounding to voxels leaves goes to the next lesion, so that coarse grids hold the load as well.
        """
        radius = (volume_mm3 * 3 / (4 * np.pi)) ** (1 / 3)
        wanted = round(volume_mm3 / self.voxel**3 + self.owed)
        self.owed += volume_mm3 / self.voxel**3 - wanted
        if wanted < 1:
            return 0
        centre = self._centre(location, radius)
        axes = self._axes(centre, location)
        reach = int(np.ceil((2.2 * radius + 1.5 + HALO_MM) / self.voxel))
        for _ in range(3):
            low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, self.shape)
            box = tuple(slice(a, b) for a, b in zip(low, high))
            grid = np.meshgrid(*(np.arange(a, b) - c for a, b, c in zip(low, high, centre)), indexing="ij")
            offset = np.stack(grid).reshape(3, -1) * self.voxel
            cost = np.linalg.norm(axes @ offset, axis=0) * (1 + self.ragged[box].ravel())
            if location == 0 and radius > 5:
                cost += 0.5 * np.maximum(self.distance[box].ravel(), 0)
            if location != 1:
                cost += 0.6 * np.maximum(3 - self.cortex[box].ravel(), 0)
            open_to = (self.white[box].ravel() > 0.45) & (self.label[box].ravel() == 0)
            if open_to.sum() >= 1.3 * wanted:
                break
            reach = int(np.ceil(1.6 * reach))
        free = np.flatnonzero(open_to)
        if not len(free):
            return 0
        order = np.argpartition(cost[free], min(wanted, len(free) - 1))
        take, left = free[order[:wanted]], free[order[wanted:]]
        patch = self.label[box]
        patch[np.unravel_index(take, patch.shape)] = label
        edge = (cost[take].max() + (cost[left].min() if len(left) else cost[take].max())) / 2
        self._fade(box, edge - cost.reshape(patch.shape), radius, label)
        return len(take)

    def _fade(self, box, depth: np.ndarray, radius: float, label: int) -> None:
        """Paint the profile by the depth (mm) below the lesion's edge, where no stronger lesion is."""
        width = np.clip(0.4 * radius, 0.7, 1.8) * np.exp(0.25 * self.rng.standard_normal())
        ramp = np.clip(0.5 + depth / (2 * width), 0, 1)
        halo = self.rng.uniform(0.05, 0.25) * np.clip(1 + depth / HALO_MM, 0, 1)
        new = np.maximum(ramp * ramp * (3 - 2 * ramp), halo).astype(np.float32)
        stronger = new > self.profile[box]
        self.profile[box][stronger], self.owner[box][stronger] = new[stronger], label


def _choose_black_holes(rng: np.random.Generator, volumes: np.ndarray, share: float) -> np.ndarray:
    """Which lesions are black holes: whole lesions, larger ones more likely, until their share of volume is met."""
    order = np.argsort(-np.log(rng.random(len(volumes))) / np.sqrt(np.maximum(volumes, 1e-6)))
    chosen, held, goal = np.zeros(len(volumes), bool), 0.0, share * volumes.sum()
    for k in order:
        if abs(held + volumes[k] - goal) < abs(held - goal):
            chosen[k] = True
            held += volumes[k]
    return chosen


def make_lesions(head: Head, rng: np.random.Generator, load_ml: float, shares, black_hole_share: float,
                 spots_mm3=()) -> Lesions:
    """Lesions of a load, or incidental spots.

    `shares`: of the volume `load_ml` by `LOCATIONS`; `black_hole_share`: what is T1-dark of it; `spots_mm3`: volumes of
    incidental subcortical spots, where there is no load. Black holes hold 55 to 100 % of black-hole tissue, other
    lesions at most 30 %.
    """
    volumes, where = np.array(spots_mm3, float), np.full(len(spots_mm3), 2)
    if load_ml > 0:
        volumes = draw_volumes(rng, load_ml, draw_number(rng, load_ml))
        where = assign_locations(rng, volumes, shares)
    if not len(volumes):
        return Lesions(*(np.zeros(head.shape, kind) for kind in (np.int16, bool, np.float32, np.float32)))
    field = LesionField(head, rng)
    taken = np.array([field.place(*lesion, number) for number, lesion in enumerate(zip(volumes, where), 1)])
    dark = _choose_black_holes(rng, taken.astype(float), black_hole_share)
    strength = rng.uniform(0.85, 1.0) * (1 - 0.45 * rng.random(len(volumes)) ** 1.5)
    darkness = np.where(dark, rng.uniform(0.55, 1.0, len(volumes)), 0.3 * rng.random(len(volumes)) ** 2)

    def of_owner(values):
        return np.concatenate([[0], values]).astype(np.float32)[field.owner]

    share = field.profile * of_owner(strength)
    return Lesions(field.label, np.concatenate([[False], dark])[field.label], share, share * of_owner(darkness))

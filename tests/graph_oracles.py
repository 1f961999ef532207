"""Slow, literal restatements of the explanatory graph's equations, and maps whose parts are known (planted)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyzers.manifest import Grid

SIDE = 224


def square_grid(cells: int) -> Grid:
    """Cells that tile a picture of 224 x 224."""
    step = SIDE / cells
    return Grid(cells=(cells, cells), stride=(step, step), offset=(step / 2, step / 2), receptive_field=(step, step))


def density(x: np.ndarray, centre: np.ndarray, log_scale: float, spread: float) -> float:
    """P(x|V) = exp(log_scale - |x - centre|^2 / (2 spread^2))."""
    return float(np.exp(log_scale - ((x - centre) ** 2).sum() / (2 * spread**2)))


def em_sums(
    f: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    centre: np.ndarray,
    log_scale: np.ndarray,
    spread: np.ndarray,
    half: np.ndarray | None,
    tau: float,
    noise: float | None = None,
) -> dict[str, np.ndarray]:
    """The E-step's sums, Eq. (2), cell by cell and node by node.

    Args:
        f: (pictures, height, width) F.
        rows: (height,) places of cells.
        columns: (pictures, width).
        centre: (pictures, nodes, 2).
        log_scale: (pictures, nodes).
        spread: (nodes,).
        half: (nodes,) half the side of the window.
        tau: share of the mean mass that the background has in every cell.
        noise: the background's likelihood instead.
    """
    count = centre.shape[1]
    result = {name: np.zeros(count) for name in ("claimed", "weight", "scatter")} | {"pull": np.zeros((count, 2))}
    for i in range(len(f)):
        p = np.zeros((count, *f.shape[1:]))
        for n in range(count):
            for h in range(f.shape[1]):
                for w in range(f.shape[2]):
                    x = np.array([rows[h], columns[i, w]])
                    if half is None or (abs(x - centre[i, n]) <= half[n]).all():
                        p[n, h, w] = density(x, centre[i, n], log_scale[i, n], spread[n])
        background = tau * p.sum((1, 2)).mean() if noise is None else noise
        for n in range(count):
            for h in range(f.shape[1]):
                for w in range(f.shape[2]):
                    away = np.array([rows[h], columns[i, w]]) - centre[i, n]
                    total = p[:, h, w].sum() + background
                    claimed = f[i, h, w] * p[n, h, w] / total if total > 0 else 0.0
                    result["claimed"][n] += claimed
                    result["pull"][n] += claimed * away
                    result["weight"][n] += f[i, h, w] * p[n, h, w]
                    result["scatter"][n] += f[i, h, w] * p[n, h, w] * (away**2).sum()
    return result


def log_likelihood(
    f: np.ndarray, rows: np.ndarray, prior: np.ndarray, log_scale: float, spread: float, noise: float
) -> float:
    """Eq. (1) of one filter: sum over pictures and cells of F log(sum_V P(x|V) + noise)."""
    total = 0.0
    for picture in f:
        for h in range(len(rows)):
            for w in range(len(rows)):
                x = np.array([rows[h], rows[w]])
                mixture = sum(density(x, centre, log_scale, spread) for centre in prior) + noise
                total += float(picture[h, w]) * np.log(mixture)
    return total


def from_parents(prior: np.ndarray, delta: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Centre, log scale and spread of one node in one picture as Eq. (3) and (4) say: a product of M Gaussians ^ 1/M.

    The product's centre is found by Newton's method on its log, its spread from the second difference, its scale
    from the value at the centre.
    """

    def log_p(x: np.ndarray) -> float:
        m = len(sigma)
        return sum(
            (-np.log(2 * np.pi * s**2) - ((x - prior - d) ** 2).sum() / (2 * s**2)) / m
            for d, s in zip(delta, sigma, strict=True)
        )

    step, x = 1e-2, prior.copy()
    down, across = np.eye(2) * step
    curvature = (log_p(x + down) - 2 * log_p(x) + log_p(x - down)) / step**2
    slope = np.array([(log_p(x + s) - log_p(x - s)) / (2 * step) for s in (down, across)])
    x = x - slope / curvature
    return x, log_p(x), float((-1 / curvature) ** 0.5)


def best_cell(
    f: np.ndarray, rows: np.ndarray, columns: np.ndarray, centre: np.ndarray, log_scale: float, spread: float
) -> tuple[int, float]:
    """First argmax and max over cells of log(F + 1e-6) + log P(x|V), in one picture."""
    best, score = 0, -np.inf
    for h in range(f.shape[0]):
        for w in range(f.shape[1]):
            away = ((np.array([rows[h], columns[w]]) - centre) ** 2).sum()
            value = np.log(f[h, w] + 1e-6) + log_scale - away / (2 * spread**2)
            if value > score:
                best, score = h * f.shape[1] + w, value
    return best, score


def root_votes(f: list[np.ndarray], prior: list[np.ndarray], rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """V(d) = sum over voters of log(0.1 + sum_x F(x) exp(-|x - (prior + d)|^2 / (2 0.06^2))), in one picture."""
    total = np.zeros(len(places))
    for k, d in enumerate(places):
        for one, mu in zip(f, prior, strict=True):
            near = 0.0
            for h in range(one.shape[0]):
                for w in range(one.shape[1]):
                    near += one[h, w] * np.exp(-((np.array([rows[h], rows[w]]) - mu - d) ** 2).sum() / (2 * 0.06**2))
            total[k] += np.log(0.1 + near)
    return total


@dataclass(frozen=True)
class Planted:
    """Maps whose filters fire at known parts.

    Attributes:
        maps: by layer (filters, pictures, cells, cells).
        place: by layer, for each planted (filter, part): filter, places (pictures, 2), whether it fires there.
        parts: (parts, pictures, 2).
    """

    maps: tuple[np.ndarray, ...]
    place: tuple[list[tuple[int, np.ndarray, np.ndarray]], ...]
    parts: np.ndarray

    @property
    def pictures(self) -> int:
        return self.maps[0].shape[1]

    def batches(self, tensors):  # noqa: ANN001, ANN201 (a MapSource)
        """The maps, a batch at a time; layer 0 is called m0."""
        for start in range(0, self.pictures, 50):
            yield {
                name: self.maps[int(name[1:])][:, start : start + 50].swapaxes(0, 1).astype(np.float32)
                for name in tensors
            }


def plant(
    seed: int, *, pictures: int = 120, shift: float = 0.2, noise: int = 4, filters: tuple[int, ...] = (12, 4)
) -> Planted:
    """Plant six parts that move together, by `shift` at most, into filters of 14 x 14 and 28 x 28 cells."""
    random = np.random.default_rng(seed)
    offset = 0.5 + random.uniform(-0.25, 0.25, (6, 1, 2))
    moved = random.uniform(-shift, shift, (1, pictures, 2))
    parts = offset + moved + random.normal(0, 0.03, (6, pictures, 2))
    maps, places = [], []
    for cells, count in zip((14, 28), filters, strict=False):
        u = (np.arange(cells) + 0.5) / cells
        layer, planted = np.zeros((count, pictures, cells, cells)), []

        def bump(
            place: np.ndarray, height: np.ndarray | float, u: np.ndarray = u, width: float = 0.6 / cells
        ) -> np.ndarray:
            y, x = (np.exp(-((u - place[..., axis, None]) ** 2) / (2 * width**2)) for axis in (0, 1))
            return y[..., :, None] * x[..., None, :] * np.asarray(height)[..., None, None]

        for d in range(count):
            for k in random.choice(6, random.integers(1, 4), replace=False):
                place = parts[k] + random.uniform(-0.04, 0.04, 2) + random.normal(0, 0.01, (pictures, 2))
                height = np.maximum(random.normal(1, 0.3, pictures), 0.2)
                seen = (random.random(pictures) > 0.1) & ((place > 0) & (place < 1)).all(1)
                layer[d] += bump(place, height * seen)
                planted.append((d, place, seen))
            for _ in range(noise):
                layer[d] += bump(random.random((pictures, 2)), np.maximum(random.normal(0.8, 0.3, pictures), 0.05))
        maps.append(layer)
        places.append(planted)
    return Planted(tuple(maps), tuple(places), parts)


@dataclass(frozen=True)
class Found:
    """How well nodes fit what was planted: share of visible parts that the best node hits within 1.5 cells, share of
    the best quarter of nodes that are on one part in 80 % of their best 20 pictures, and their location instability."""

    hit: float
    purity: float
    instability: float


def judge(planted: Planted, layer: int, filters: np.ndarray, position: np.ndarray, score: np.ndarray) -> Found:
    """Compare nodes with the truth.

    Args:
        planted: the truth.
        layer: which layer.
        filters: (nodes,).
        position: (pictures, nodes, 2).
        score: (pictures, nodes), log.
    """
    near = 1.5 / planted.maps[layer].shape[-1]
    hits = []
    for d, place, seen in planted.place[layer]:
        away = np.linalg.norm(position[seen][:, filters == d] - place[seen, None], axis=-1)
        hits.append((away <= near).mean(0).max())
    best = np.argsort(-np.exp(score - score.max()).mean(0), kind="stable")[: max(1, len(filters) // 4)]
    pure, spread = [], []
    for node in best:
        top = np.argsort(-score[:, node], kind="stable")[:20]
        shares = [
            ((np.linalg.norm(position[top, node] - place[top], axis=-1) <= near) & seen[top]).mean()
            for d, place, seen in planted.place[layer]
            if d == filters[node]
        ]
        pure.append(max(shares) >= 0.8)
        away = np.linalg.norm(position[top, node] - planted.parts[:, top], axis=-1) / 2**0.5
        spread.append(away.std(1, ddof=1).mean())
    return Found(float(np.mean(hits)), float(np.mean(pure)), float(np.mean(spread)))


def raw_instability(planted: Planted, layer: int) -> float:
    """The same of raw filter peaks, each filter as one node."""
    maps = planted.maps[layer]
    row, column = np.divmod(maps.reshape(*maps.shape[:2], -1).argmax(-1), maps.shape[-1])
    peak = (np.stack((row, column), -1) + 0.5) / maps.shape[-1]
    spread = []
    for d in range(len(maps)):
        top = np.argsort(-maps[d].max((1, 2)), kind="stable")[:20]
        away = np.linalg.norm(peak[d, top] - planted.parts[:, top], axis=-1) / 2**0.5
        spread.append(away.std(1, ddof=1).mean())
    return float(np.mean(spread))

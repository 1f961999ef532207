"""Literal, slow restatements of the papers' equations, to hold the production code against."""

from __future__ import annotations

import numpy as np


def part_template(n: int, mu: tuple[int, int], beta: float = 4.0) -> np.ndarray:
    """T_mu of arXiv 1710.00935 section 3, with tau = 1: t_ij = max(1 - beta ||[i, j] - mu||_1 / n, -1)."""
    template = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            distance = abs(i - mu[0]) + abs(j - mu[1])
            template[i, j] = max(1 - beta * distance / n, -1)
    return template


def masked(x: np.ndarray, beta: float = 4.0) -> np.ndarray:
    """x_masked = max(x o T_mu_hat, 0), mu_hat = argmax_ij x_ij (first one), for maps (batch, filters, n, n)."""
    result = np.zeros_like(x)
    for b in range(x.shape[0]):
        for k in range(x.shape[1]):
            mu, best = (0, 0), -np.inf
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    if x[b, k, i, j] > best:
                        mu, best = (i, j), x[b, k, i, j]
            result[b, k] = np.maximum(x[b, k] * part_template(x.shape[2], mu, beta), 0)
    return result


def centroid(x: np.ndarray) -> tuple[int, int]:
    """The centre of mass of one map, rounded half up; (0, 0) of an empty one. The authors' code counts from 1."""
    total = max(float(x.sum()), 1e-9)
    row = sum(i * float(x[i, j]) for i in range(x.shape[0]) for j in range(x.shape[1])) / total
    column = sum(j * float(x[i, j]) for i in range(x.shape[0]) for j in range(x.shape[1])) / total
    return int(row + 0.5), int(column + 0.5)


def index_sets(f: np.ndarray, label: np.ndarray, weight: np.ndarray, k1: int, k2: int, rule: str) -> list[list[int]]:
    """I_c of arXiv 2112.07719: the k2 features that are most often among a picture's k1 strongest.

    Ties: higher class-mean score first, then the lower number.
    """
    sets = []
    for c in range(len(weight)):
        counts, total, pictures = [0] * f.shape[1], [0.0] * f.shape[1], 0
        for i in range(len(f)):
            if label[i] != c:
                continue
            pictures += 1
            score = [float(f[i, j]) * (float(weight[c, j]) if rule == "contribution" else 1) for j in range(f.shape[1])]
            strongest = sorted(range(f.shape[1]), key=lambda j: (-score[j], j))[:k1]
            for j in strongest:
                counts[j] += 1
            for j in range(f.shape[1]):
                total[j] += score[j]
        order = sorted(range(f.shape[1]), key=lambda j: (-counts[j], -total[j] / pictures, j))
        sets.append(order[:k2])
    return sets


def ledger(f: np.ndarray, weight: np.ndarray, bias: np.ndarray, c: int, chosen: list[int]) -> tuple[dict, float, float]:
    """z_c = b_c + sum_{j in I_c} w_cj f_j + rest, in float64; returns the contributions, the rest and z_c."""
    contributions = {j: float(weight[c, j]) * float(f[j]) for j in chosen}
    rest = sum(float(weight[c, j]) * float(f[j]) for j in range(len(f)) if j not in chosen)
    return contributions, rest, sum(contributions.values()) + rest + float(bias[c])


def plain_filter_loss(
    x: np.ndarray, label: np.ndarray, category: np.ndarray, scale: np.ndarray, share: np.ndarray, beta: float = 4.0
) -> float:
    """The "plain" filter loss: -0.5/share <x, T_mu> on a filter's own class, 0.5/(1 - share) sum x on others."""
    total = 0.0
    for b in range(x.shape[0]):
        for k in range(x.shape[1]):
            scaled = x[b, k] / scale[k]
            mu = np.unravel_index(np.argmax(scaled), scaled.shape)
            own = share[category[k]]
            if label[b] == category[k]:
                total -= 0.5 / own * float((scaled * part_template(x.shape[2], mu, beta)).sum())
            else:
                total += 0.5 / (1 - own) * float(scaled.sum())
    return total / (x.shape[0] * x.shape[1])


def mutual_information_loss(x: np.ndarray, tau: float = 1.0, beta: float = 4.0) -> float:
    """-MI(X; T) of one filter's maps x (batch, n, n), section 3 of arXiv 1710.00935, Z over the batch."""
    n = x.shape[1]
    templates = [part_template(n, (i, j), beta) for i in range(n) for j in range(n)] + [-np.ones((n, n))]
    score = np.array([[tau * float((picture * template).sum()) for template in templates] for picture in x])
    prior = 1 / len(templates)
    p_x_given_t = np.exp(score) / np.exp(score).sum(0, keepdims=True)
    p_x = (prior * p_x_given_t).sum(1)
    return -sum(
        prior * p_x_given_t[b, t] * (np.log(p_x_given_t[b, t]) - np.log(p_x[b]))
        for b in range(len(x))
        for t in range(len(templates))
    )


def mutual_information_gradient(x: np.ndarray, *, z_constant: bool, beta: float = 4.0) -> np.ndarray:
    """d(-MI)/dx of one filter's maps (batch, n, n), with the leading minus that the printed Eq. (4) lacks.

    Z held constant: -sum_t p(T_t) p(x_b|T_t) log(p(x_b|T_t) / p(x_b)) T_t. Z differentiated: the logarithm less KL_t.
    """
    n = x.shape[1]
    templates = [part_template(n, (i, j), beta) for i in range(n) for j in range(n)] + [-np.ones((n, n))]
    score = np.array([[float((picture * template).sum()) for template in templates] for picture in x])
    p_x_given_t = np.exp(score) / np.exp(score).sum(0, keepdims=True)
    p_x = p_x_given_t.mean(1)
    gradient = np.zeros_like(x)
    for t, template in enumerate(templates):
        ratio = [np.log(p_x_given_t[b, t] / p_x[b]) for b in range(len(x))]
        divergence = 0.0 if z_constant else sum(p_x_given_t[b, t] * ratio[b] for b in range(len(x)))
        for b in range(len(x)):
            gradient[b] -= p_x_given_t[b, t] / len(templates) * (ratio[b] - divergence) * template
    return gradient


def code_filter_gradient(
    x: np.ndarray, label: np.ndarray, category: np.ndarray, scale: np.ndarray, share: np.ndarray, beta: float = 4.0
) -> np.ndarray:
    """The filter loss's gradient to x as in the authors' released code, a = 0.5, in our units and clamped at 0.

    Own pictures get -0.5/share w_b m, others +0.5/(1 - share) z_b, both over batch x filters x scale; w_b is
    exp(s_b/a) (s_b/a - log Z + 1) with mean 1 over own pictures, where the template of another picture and filter
    estimates Z; z_b likewise from minus the mean of the map.
    """
    count, filters, n, _ = x.shape
    a, gradient = 0.5, np.zeros_like(x)
    template = np.zeros_like(x)
    for b in range(count):
        for k in range(filters):
            template[b, k] = part_template(n, np.unravel_index(np.argmax(x[b, k]), (n, n)), beta)
    for k in range(filters):
        scaled = x[:, k] / scale[k]
        s = [float((scaled[b] * template[b, k]).mean()) / a for b in range(count)]
        other = [float((scaled[b] * template[count - 1 - b, filters - 1 - k]).mean()) / a for b in range(count)]
        u = [-float(scaled[b].mean()) / a for b in range(count)]
        log_z, log_z_minus = np.log(np.mean(np.exp(other))), np.log(np.mean(np.exp(u)))
        own = [b for b in range(count) if label[b] == category[k]]
        rest = [b for b in range(count) if label[b] != category[k]]
        w = {b: max(np.exp(s[b]) * (s[b] - log_z + 1), 0) for b in own}
        z = {b: max(np.exp(u[b]) * (u[b] - log_z_minus + 1), 0) for b in rest}
        for b in own:
            weight = w[b] / (sum(w.values()) / len(own))
            gradient[b, k] = -0.5 / share[category[k]] * weight * template[b, k] / (count * filters * scale[k])
        for b in rest:
            weight = z[b] / (sum(z.values()) / len(rest))
            gradient[b, k] = 0.5 / (1 - share[category[k]]) * weight / (count * filters * scale[k])
    return gradient


def entropy_form(x: np.ndarray, tau: float = 1.0, beta: float = 4.0) -> float:
    """Eq. (7) with the minus sign that the printed one lacks: -H(T) + H(T' | X) + sum_x p(T+, x) H(T+ | X = x)."""
    n = x.shape[1]
    templates = [part_template(n, (i, j), beta) for i in range(n) for j in range(n)] + [-np.ones((n, n))]
    score = np.array([[tau * float((picture * template).sum()) for template in templates] for picture in x])
    joint = np.exp(score) / np.exp(score).sum(0, keepdims=True) / len(templates)  # p(x, T)
    p_x = joint.sum(1)
    positive = joint[:, :-1].sum(1)
    entropy_of_templates = np.log(len(templates))
    sign_given_x = -(positive * np.log(positive / p_x) + joint[:, -1] * np.log(joint[:, -1] / p_x)).sum()
    share = joint[:, :-1] / positive[:, None]
    return -entropy_of_templates + sign_given_x - (positive * (share * np.log(share)).sum(1)).sum()


# Yes or no for each class.


def distillation_loss(logits: np.ndarray, taught: np.ndarray, loss: str) -> float:
    """Return 4 KL(teacher || network) at temperature 2, picture by picture; of each class's yes and no if logistic."""
    total = 0.0
    for z, t in zip(logits / 2, taught / 2, strict=True):
        if loss == "softmax":
            p, q = np.exp(t) / np.exp(t).sum(), np.exp(z) / np.exp(z).sum()
            total += float((p * np.log(p / q)).sum())
        else:
            p, q = 1 / (1 + np.exp(-t)), 1 / (1 + np.exp(-z))
            total += float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum())
    return 4 * total / len(logits)


def logistic_loss(z: np.ndarray, member: np.ndarray) -> float:
    """Mean over pictures of sum_c log(1 + exp(-y_c z_c)), y_c = +1 where the picture has class c and -1 elsewhere."""
    total = 0.0
    for b in range(len(z)):
        for c in range(z.shape[1]):
            y = 1 if member[b, c] else -1
            total += np.log(1 + np.exp(-y * float(z[b, c])))
    return total / len(z)


def average_precision(score: np.ndarray, truth: np.ndarray) -> float:
    """Sum over thresholds, from the highest score down, of the gain in recall times the precision there."""
    total = recall = 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        chosen = [bool(truth[i]) for i in range(len(score)) if score[i] >= threshold]
        now = sum(chosen) / truth.sum()
        total += (now - recall) * sum(chosen) / len(chosen)
        recall = now
    return float(total)


# Measures of where filters look, arXiv 1710.00935 section 5.2, and their companions.


def location_instability(
    peak: np.ndarray, landmark: np.ndarray, diagonal: float, strength: np.ndarray | None, top: int, sample_std: bool
) -> np.ndarray:
    """D_fk: std over the filter's strongest `top` pictures with landmark k of ||p_k - p(mu)|| / diagonal."""
    table = np.full((peak.shape[1], landmark.shape[1]), np.nan)
    for f in range(peak.shape[1]):
        for k in range(landmark.shape[1]):
            shown = [i for i in range(len(peak)) if not np.isnan(landmark[i, k, 0]) and not np.isnan(peak[i, f, 0])]
            if strength is not None:
                shown = sorted(shown, key=lambda i: -strength[i, f])[:top]
            d = [((peak[i, f] - landmark[i, k]) ** 2).sum() ** 0.5 / diagonal for i in shown]
            if len(d) >= 2:
                mean = sum(d) / len(d)
                table[f, k] = (sum((x - mean) ** 2 for x in d) / (len(d) - sample_std)) ** 0.5
    return table


def tracking_ratio(peak: np.ndarray, landmark: np.ndarray) -> np.ndarray:
    """R_fk = sqrt(tr Cov(p_k - p(mu))) / sqrt(tr Cov(p_k)) over the pictures that have both."""
    table = np.full((peak.shape[1], landmark.shape[1]), np.nan)
    for f in range(peak.shape[1]):
        for k in range(landmark.shape[1]):
            both = [i for i in range(len(peak)) if not np.isnan(landmark[i, k, 0]) and not np.isnan(peak[i, f, 0])]
            if len(both) >= 2:
                apart = np.cov(np.array([landmark[i, k] - peak[i, f] for i in both]).T)
                alone = np.cov(np.array([landmark[i, k] for i in both]).T)
                table[f, k] = np.sqrt(np.trace(apart) / np.trace(alone))
    return table


def hit_rate(peak: np.ndarray, landmark: np.ndarray, radius: float) -> np.ndarray:
    """Share of the pictures showing landmark k with a peak at most `radius` away; no peak is a miss."""
    table = np.full((peak.shape[1], landmark.shape[1]), np.nan)
    for f in range(peak.shape[1]):
        for k in range(landmark.shape[1]):
            shown = [i for i in range(len(peak)) if not np.isnan(landmark[i, k, 0])]
            hits = [i for i in shown if ((peak[i, f] - landmark[i, k]) ** 2).sum() ** 0.5 <= radius]
            table[f, k] = len(hits) / len(shown) if shown else np.nan
    return table


def mutual_information(bin_of: np.ndarray, member: np.ndarray) -> float:
    """MI in nats between a discrete variable and a yes or no: sum p(b, y) log(p(b, y) / (p(b) p(y)))."""
    total = 0.0
    for b in set(bin_of.tolist()):
        for y in (False, True):
            joint = float(((bin_of == b) & (member == y)).mean())
            if joint > 0:
                total += joint * np.log(joint / (float((bin_of == b).mean()) * float((member == y).mean())))
    return total


def part_interpretability(
    maps: np.ndarray, centres: np.ndarray, radius: float, box: np.ndarray, side: float, raster: int
) -> np.ndarray:
    """P_f = max_k of the share of pictures showing part k whose region overlaps its box with IoU > 0.2.

    The region is the union of discs round the cells above the highest value that at most 0.5 % of them exceed.
    """
    n, filters, cells = maps.shape
    result = []
    for f in range(filters):
        values = sorted(maps[:, f].ravel().tolist(), reverse=True)
        threshold = values[int(0.005 * n * cells)]
        share = []
        for k in range(box.shape[1]):
            shown = [i for i in range(n) if not np.isnan(box[i, k, 0])]
            associated = 0
            for i in shown:
                shared = either = 0
                for row in range(raster):
                    for column in range(raster):
                        x, y = (column + 0.5) / raster * side, (row + 0.5) / raster * side
                        in_region = any(
                            maps[i, f, c] > threshold
                            and (x - centres[c, 0]) ** 2 + (y - centres[c, 1]) ** 2 <= radius**2
                            for c in range(cells)
                        )
                        in_part = box[i, k, 0] <= x < box[i, k, 2] and box[i, k, 1] <= y < box[i, k, 3]
                        shared += in_region and in_part
                        either += in_region or in_part
                associated += either > 0 and shared / either > 0.2
            share.append(associated / len(shown) if shown else np.nan)
        result.append(np.nanmax(share))
    return np.array(result)

"""How many class features a classifier needs: every rule, k1 and k2, with and without a refit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyzers.class_features import Head, Histogram, Int64Array
from analyzers.decompose import Moments, Tuning, decompose, tune
from analyzers.disentangle import ablation, concentration, overlap
from analyzers.feature_table import FeatureTable, read_features
from analyzers.manifest import RULES, Rule
from analyzers.pictures import Pictures
from analyzers.plain import Plain

SWEEP_SCHEMA = 1
K1 = (1, 3, 5, 10, 20, 40)
K2 = (1, 2, 3, 5, 8, 10, 15, 20, 30)
PAPER_K = (1, 3, 5, 10, 20)
DRAWS = 20  # of random sets

Figure = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to try.

    Attributes:
        k1: features counted per picture, for the grid.
        k2: features per class, for the grid.
        k: k1 = k2, for the comparison of rules.
        rule: of the grid, the ablation and the overlap.
        tuning: how to tune heads; None leaves that out.
    """

    k1: tuple[int, ...] = K1
    k2: tuple[int, ...] = K2
    k: tuple[int, ...] = PAPER_K
    rule: Rule = "contribution"
    tuning: Tuning | None = None


def sweep(
    plain: Plain, pictures: Pictures, plan: Plan, *, fit_on: str = "train", split: str = "test"
) -> dict[str, Any]:
    """Measure a classifier's decomposition; `docs/report.md` says what is in the report.

    Args:
        plain: the classifier, explained already or not.
        pictures: labelled, of its classes.
        plan: what to try.
        fit_on: the split on which class features are found and heads fitted.
        split: the split on which accuracies are measured.
    """
    pictures = pictures.relabelled(plain.manifest.classes)
    train = read_features(plain, pictures.of_split(fit_on), f"features, {fit_on}")
    test = read_features(plain, pictures.of_split(split), f"features, {split}")
    head, features = plain.found.head, plain.found.head.weight.shape[1]
    fits = _Fits(head, train)
    k1, k2, k = (tuple(sorted({min(n, features) for n in numbers})) for numbers in (plan.k1, plan.k2, plan.k))
    shown = k[len(k) // 2]
    chosen = fits.sets(plan.rule, shown, shown)
    return {
        "schema": SWEEP_SCHEMA,
        "model": {"classes": len(head.bias), "features": features},
        "data": {"fit_on": fit_on, "fitted": len(train.label), "split": split, "pictures": len(test.label)},
        "accuracy": _share(test, head),
        "grid": {
            "rule": plan.rule,
            "k1": list(k1),
            "k2": list(k2),
            "accuracy": [[test.accuracy(decompose(head, fits.sets(plan.rule, a, b))) for b in k2] for a in k1],
        },
        "rules": _rules(fits, test, k),
        "heads": [_heads(fits, test, plan, size) for size in k],
        "concentration": concentration(train, head, shown),
        "overlap": {"k": shown, "rule": plan.rule} | overlap(head, chosen),
        "ablation": {"k": shown, "rule": plan.rule} | ablation(test, head, chosen, train.pooled.mean(0)),
    }


class _Fits:
    """Class features and heads found on one table; histograms are counted once for each rule and k1."""

    def __init__(self, head: Head, table: FeatureTable) -> None:
        self.head, self.table = head, table
        self.moments = Moments(head)
        self.moments.add(table.pooled)
        self._counted: dict[tuple[Rule, int], Histogram] = {}

    def sets(self, rule: Rule, k1: int, k2: int) -> Int64Array:
        if (rule, k1) not in self._counted:
            self._counted[rule, k1] = Histogram(self.head, k1, rule)
            self._counted[rule, k1].add(self.table.pooled, self.table.label)
        return self._counted[rule, k1].index_sets(k2)


def _share(table: FeatureTable, head: Head) -> Figure:
    value, n = table.accuracy(head), len(table.label)
    return {"value": value, "n": n, "standard_error": float(np.sqrt(value * (1 - value) / n))}


def _rules(fits: _Fits, test: FeatureTable, k: Sequence[int]) -> dict[str, list[Figure]]:
    report: dict[str, list[Figure]] = {}
    full = test.logits(fits.head).argmax(1)
    for rule in RULES:
        rows = []
        for size in k:
            if rule == "random":
                values = [test.accuracy(decompose(fits.head, _lot(fits.head, size, seed))) for seed in range(DRAWS)]
                spread = float(np.std(values, ddof=1))
                rows.append({"k": size, "value": float(np.mean(values)), "n": DRAWS, "standard_deviation": spread})
                continue
            smaller = decompose(fits.head, fits.sets(rule, size, size))
            agreement = float((test.logits(smaller).argmax(1) == full).mean())
            rows.append({"k": size, **_share(test, smaller), "agreement": agreement})
        report[rule] = rows
    return report


def _lot(head: Head, size: int, seed: int) -> Int64Array:
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(head.weight.shape[1])[:size] for _ in head.bias])


def _heads(fits: _Fits, test: FeatureTable, plan: Plan, size: int) -> Figure:
    """Return the accuracies of the decomposed layer with weights kept, refitted and tuned."""
    row: Figure = {"k": size, "rule": plan.rule}
    sets = fits.sets(plan.rule, size, size)
    refitted = fits.moments.refit(sets)
    row["kept"], row["refitted"] = _share(test, decompose(fits.head, sets)), _share(test, refitted)
    if plan.tuning is not None:
        tuned = tune(fits.head, refitted, sets, fits.table.pooled, fits.table.label, plan.tuning)
        row["tuned"] = _share(test, tuned)
    return row

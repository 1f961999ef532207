"""What a PromQL expression asks for: the series it reads, the labels it compares, the labels it groups by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

promql = pytest.importorskip("promql_parser", reason="promql-parser is not installed; it comes with pellucid[dev]")

GRAFANA = {"$__rate_interval": "1m", "$model": ".*"}


def parse(expression: str) -> object:
    """Parse an expression, Grafana's variables filled in.

    Raises:
        ValueError: it is no PromQL, or of the wrong types.
    """
    for name, value in GRAFANA.items():
        expression = expression.replace(name, value)
    return promql.parse(expression)


def nodes(tree: object) -> Iterator[object]:
    """Return an expression's node and all below it."""
    yield tree
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (below := getattr(tree, name, None)) is not None:
            yield from nodes(below)
    for below in getattr(tree, "args", None) or []:
        yield from nodes(below)


def selected(tree: object) -> dict[str, dict[str, str]]:
    """Return the series that are read, each with the labels and values it is narrowed by."""
    found: dict[str, dict[str, str]] = {}
    for node in nodes(tree):
        if isinstance(node, promql.VectorSelector):
            found.setdefault(node.name, {}).update({one.name: one.value for one in node.matchers.matchers})
    return found


def grouped(tree: object) -> set[str]:
    """Return the labels that are grouped by or matched on."""
    modifiers = [getattr(node, "modifier", None) for node in nodes(tree)]
    labels = [getattr(getattr(modifier, "matching", None) or modifier, "labels", None) for modifier in modifiers]
    return {label for some in labels if some for label in some}

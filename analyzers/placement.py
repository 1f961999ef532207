"""On which execution provider ONNX Runtime has placed a session's nodes, by its own report."""

from __future__ import annotations

from collections import Counter

from analyzers.execution import CPU
from analyzers.wheel import ort

RECORD = "session.record_ep_graph_assignment_info"
"""The session option that keeps the report; "1"."""
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})


def placed(session: ort.InferenceSession) -> dict[str, Counter[str]]:
    """Return, for each provider that has nodes, how many of each operator; empty where no report was kept."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # the session was opened without it, or is of a release that has none
        return {}
    found: dict[str, Counter[str]] = {}
    for part in parts:
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found


def listed(operators: Counter[str]) -> str:
    """Return operators and how many of each there are, as words."""
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in sorted(operators.items()))


def why_not_captured(nodes: dict[str, Counter[str]]) -> str | None:
    """Return why a graph's runs cannot be captured, None where nothing speaks against it."""
    every = Counter[str]()
    for operators in nodes.values():
        every.update(operators)
    flow = Counter({name: count for name, count in every.items() if name in CONTROL_FLOW})
    if flow:
        return f"its graph decides what runs while it runs ({listed(flow)})"
    if nodes.get(CPU):
        return f"ONNX Runtime runs nodes of it on the CPU ({listed(nodes[CPU])})"
    return None

"""An Explanation as text: the prediction, the ledger that adds up to its logit, and the tree of part patterns."""

from __future__ import annotations

from analyzers.explanation import Contrast, Contribution, Explanation, ExplanatoryGraph, Ledger, Node

CONTRASTED = 3  # reasons against the runner-up that the text names


def render(explanation: Explanation, title: str = "") -> str:
    """Return the text of an explanation: best class first, then its ledger, then the runners-up."""
    best, *others = explanation.predictions
    head = f"{best.class_name}  {best.probability:.1%}"
    lines = [f"{title}: {head}" if title else head]
    if explanation.class_features:
        lines += _ledger(explanation.class_features[0])
    if explanation.contrast is not None:
        lines.append(_contrast(explanation.contrast))
    if explanation.parts is not None and not explanation.class_features:
        lines += [
            f"  filter {part.filter} fired at ({part.x:.0f}, {part.y:.0f}), score {part.score:.2f}"
            for part in explanation.parts.parts
        ]
    if explanation.explanatory_graph is not None:
        lines += _tree(explanation.explanatory_graph)
    if others:
        lines.append("  not: " + ", ".join(f"{other.class_name} {other.probability:.1%}" for other in others))
    return "\n".join(lines)


def _ledger(ledger: Ledger) -> list[str]:
    entries = [(entry.contribution, describe(entry)) for entry in ledger.contributions]
    if ledger.omitted:
        entries.append((ledger.omitted, "class features not listed"))
    entries += [(ledger.rest, "rest (all other features)"), (ledger.bias, "bias")]
    lines = [f"  {amount:+8.3f}  {what}" for amount, what in entries]
    return [
        *lines,
        f"  {'-' * 8}",
        f"  {ledger.total:+8.3f}  = logit of {ledger.class_name} ({ledger.logit:+.3f})",
    ]


def _contrast(contrast: Contrast) -> str:
    entries = [f"{_name(entry)} {entry.contribution:+.3f}" for entry in contrast.contributions[:CONTRASTED]]
    return f"  rather than {contrast.against_name} by {contrast.margin:+.3f}: {', '.join(entries)}, ..."


def _tree(graph: ExplanatoryGraph) -> list[str]:
    """Return the nodes, each below its parent of the highest percentile."""
    best = {(node.layer, node.node): node for node in graph.nodes}
    below: dict[tuple[int, int] | None, list[Node]] = {}
    for node in graph.nodes:
        parents = [best[node.layer - 1, parent] for parent in node.parents]
        parent = max(parents, key=lambda parent: parent.percentile, default=None)
        below.setdefault(None if parent is None else (parent.layer, parent.node), []).append(node)
    whose = f" of {graph.class_name}" if graph.class_name else ""
    lines = [f"  explanatory graph{whose}: {len(graph.nodes)} part patterns{', mirrored' if graph.mirrored else ''}"]

    def write(node: Node, depth: int) -> None:
        others = f", under {len(node.parents) - 1} more" if len(node.parents) > 1 else ""
        place = f"at ({node.x:.0f}, {node.y:.0f}), percentile {node.percentile:.0f}{others}"
        lines.append(f"    {'  ' * depth}layer {node.layer} node {node.node}, filter {node.filter} {place}")
        for child in below.get((node.layer, node.node), ()):
            write(child, depth + 1)

    for root in below.get(None, ()):
        write(root, 0)
    return lines


def _name(entry: Contribution) -> str:
    if entry.part is None:
        return f"feature {entry.feature}"
    return f"{'part' if entry.part.learned_for else 'filter'} {entry.part.filter}"


def describe(entry: Contribution) -> str:
    """Say in a few words what a contribution is."""
    part = entry.part
    if part is None:
        return f"feature {entry.feature}" + (" (did not fire)" if entry.activation == 0 else "")
    place = f"{part.filter} at ({part.x:.0f}, {part.y:.0f})"
    return f"part {place}, learned for {part.learned_for}" if part.learned_for else f"filter {place}"

"""The board of explanation quality as text."""

from __future__ import annotations

from typing import Any


def quality_lines(report: dict[str, Any]) -> list[str]:
    """Return the table: value, controls, skill over each, and by how many standard errors the centre is beaten."""
    if "absent" in report:
        return [f"quality                  none: {report['absent']}"]
    lines = [
        f"quality on {report['n']} pictures; skill over a control is 1 for perfect, 0 for no better",
        f"  {'':<32}{'value':>16}{'centre':>9}{'edges':>9}{'random':>9}   skill over centre, edges, random",
    ]
    for name, figure in report.items():
        if not isinstance(figure, dict) or "better" not in figure:
            continue
        if figure["value"] is None:
            lines.append(f"  {name:<32}{'none':>16}")
            continue
        error = "" if figure["standard_error"] is None else f" ± {figure['standard_error']:.3f}"
        controls = "".join(f"{_number(figure['controls'].get(control)):>9}" for control in _CONTROLS)
        skill = ", ".join(_number(figure["skill"].get(control), "+.2f") for control in _CONTROLS)
        said = ""
        if margin := figure.get("margin", {}).get("centre"):
            if margin["standard_error"]:
                said = f"  ({margin['value'] / margin['standard_error']:+.1f} s.e. from centre)"
        elif "passes" in figure:
            said = "  (passes)" if figure["passes"] else "  (FAILS)"
        arrow = "↑" if figure["better"] == "higher" else "↓"
        value = f"{figure['value']:.3f}{error}"
        lines.append(f"  {name + ' ' + arrow:<32}{value:>16}{controls}   {skill}{said}")
    concurrency = report["concurrency_difference"]
    lines.append(f"  {'concurrency_difference ↓':<32}{concurrency['value']:>16.1e}   (n = {concurrency['n']})")
    return lines


_CONTROLS = ("centre", "edges", "random")


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)

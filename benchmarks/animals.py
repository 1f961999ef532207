"""Ordinary against interpretable networks on real animals: each filter loss, several seeds, one table.

For every seed `examples/animals-ordinary.toml` is learned for 16 epochs and for 8 more, then each design goes on from
there for 8, the ordinary network among them. Everything is a run of `pellucid-train`; what has a report already is not
run again, so an interrupted experiment goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent / "examples"
ORDINARY, INTERPRETABLE = EXAMPLES / "animals-ordinary.toml", EXAMPLES / "animals-interpretable.toml"

_PLAIN = "--train.filter_loss=plain --train.filter_push=0.25 --train.distil=1"
_MASKED = "--model.mask=true"
DESIGNS = {
    "ordinary": "--model.interpretable=false",
    "ordinary, centres of mass": "--model.interpretable=false --model.peak=centroid",
    "the example: groups 30": "",
    "plain 0.05, distilled": f"{_PLAIN} --train.filter_weight=0.05",
    "plain 0.15, distilled": f"{_PLAIN} --train.filter_weight=0.15",
    "plain 0.15, distilled, centres of mass": f"{_PLAIN} --train.filter_weight=0.15 --model.peak=centroid",
    "mask, plain 0.1": f"{_MASKED} --train.filter_loss=plain --train.filter_weight=0.1",
    "mask, code 0.1": f"{_MASKED} --train.filter_loss=code --train.filter_weight=0.1",
    "mask, paper 1": f"{_MASKED} --train.filter_loss=paper --train.filter_weight=1",
    "mask, mi 1": f"{_MASKED} --train.filter_loss=mi --train.filter_weight=1",
    "mask, gates 1": f"{_MASKED} --train.filter_loss=gates --train.filter_weight=1",
    "mask, groups 3": f"{_MASKED} --train.filter_loss=groups --train.filter_weight=3",
    "groups 150": "--train.filter_weight=150",
    "paper 10": "--train.filter_loss=paper --train.filter_weight=10",
}
FIGURES = (
    ("accuracy, %", lambda report: 100 * report["accuracy"]["value"]),
    ("tracking ratio", lambda report: report["parts"]["tracking_ratio"]["value"]),
    ("instability", lambda report: report["parts"]["location_instability"]["value"]),
    ("its centre", lambda report: report["parts"]["location_instability"]["controls"]["centre"]),
    ("class purity", lambda report: report["parts"]["class_purity"]["value"]),
    ("off centre: tracking ratio", lambda report: report["parts_off_centre"]["tracking_ratio"]["value"]),
    ("instability", lambda report: report["parts_off_centre"]["location_instability"]["value"]),
    ("its centre", lambda report: report["parts_off_centre"]["location_instability"]["controls"]["centre"]),
)


def run(job: Path, folder: Path, name: str, seed: int, data: Path, more: list[str]) -> dict[str, Any]:
    """Run a job, unless it has been, and return its report."""
    report = folder / name / "1" / "report.json"
    if not report.exists():
        fixed = ["--data.path", str(data), "--output", str(folder), "--name", name, "--train.seed", str(seed)]
        command = [sys.executable, "-m", "training", "run", str(job), *fixed, *more, "--resume"]
        environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    return dict(json.loads(report.read_text(encoding="utf-8")))


def row(title: str, reports: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> str:
    """Return a design's row: means over seeds, in brackets from the lowest to the highest."""
    cells = []
    for number, (_, read) in enumerate(FIGURES):
        values = [read(report) for report in reports]
        digits = (1, 3)[number > 0]
        spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
        cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
    ratio = [statistics.fmean(FIGURES[1][1](report) for report in group) for group in (reports, baseline)]
    return f"| {title} | {cells[0]} | {cells[1]} | {ratio[0] / ratio[1]:.2f} | {' | '.join(cells[2:])} |"


def main() -> None:
    """Run what has not been run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a pack with part marks")
    parser.add_argument("--output", type=Path, default=Path("models/experiment"), help="where all runs are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="only designs whose title contains this; the ordinary one runs anyway")
    parser.add_argument("--precision", default="bfloat16", help="bfloat16 pays on processors that have it")
    options = parser.parse_args()
    precision = ["--train.precision", options.precision]
    reports: dict[str, list[dict[str, Any]]] = {"(the start)": []}
    for seed in range(options.seeds):
        start = f"start-{seed}"
        run(ORDINARY, options.output, f"first-{seed}", seed, options.data, [*precision, "--train.epochs", "16"])
        first = options.output / f"first-{seed}" / "1" / "weights.safetensors"
        again = [*precision, "--train.epochs", "8", "--train.start", str(first)]
        reports["(the start)"].append(run(ORDINARY, options.output, start, seed, options.data, again))
        weights = options.output / start / "1" / "weights.safetensors"
        for title, overrides in DESIGNS.items():
            if options.only and options.only not in title and title != "ordinary":
                continue
            more = [*precision, "--train.start", str(weights), *overrides.split()]
            name = f"{'-'.join(re.findall('[a-z0-9.]+', title))}-{seed}"
            reports.setdefault(title, []).append(run(INTERPRETABLE, options.output, name, seed, options.data, more))
    titles = [title for title, _ in FIGURES]
    print(f"| continued as | {titles[0]} | {titles[1]} | of ordinary | {' | '.join(titles[2:])} |")
    print("|---" * (len(titles) + 2) + "|")
    for title, group in reports.items():
        print(row(title, group, reports["ordinary"]))


if __name__ == "__main__":
    main()

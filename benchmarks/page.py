"""Write the page of the served figures from what was measured, and its picture.

    python -m benchmarks.page

reads `benchmarks/results/{serving,serving-one-process,peers}.json`, as their programs wrote them with `--json`, and
writes `docs/peers.md` and `docs/peers.png`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.record import Line, Record

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE, PICTURE = ROOT / "docs" / "peers.md", ROOT / "docs" / "peers.png"

NETWORKS = {"resnet18-224": "ResNet-18 at 224", "resnet18-128": "ResNet-18 at 128", "resnet20-32": "ResNet-20 at 32"}
CALLS = {"explain uint8": "Explain, bytes", "infer uint8": "ModelInfer, bytes", "infer float32": "ModelInfer, floats"}
CALLERS = (1, 8, 32)
PEER, OURS, TYPED = "peer", "ours, same bytes", "ours, typed reasons"
OUR_COLOURS, THEIR_COLOUR = {OURS: "#2166ac", TYPED: "#67a9cf"}, "#bbbbbb"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def serving_table(record: Record) -> str:
    """Return the server against the bare loop, a line for each network and call."""
    found = {(str(li["network"]), str(li["file"]), str(li["kind"]), int(li["concurrency"])): li for li in record.lines}
    rows = []
    for network, title in NETWORKS.items():
        for kind, call in CALLS.items():
            lines = [found[network, "explained", kind, callers] for callers in CALLERS]
            plain = lines[-1].get("rate_to_plain")
            rows.append(
                [
                    title,
                    call,
                    *(f"{line['rate']:.0f}, {line['rate_to_bare']:.2f}" for line in lines),
                    " / ".join(f"{line['cpu_added_ms']:.2f}" for line in lines),
                    f"{lines[0]['p50_added_ms']:.1f}",
                    "" if plain is None else f"{plain:.2f}",
                ]
            )
        alone, full = (found[network, "explained", "bare", threads] for threads in bare_threads(record))
        rows.append([title, "bare loop", *(f"{line['rate']:.0f}" for line in (alone, full, full)), "", "", ""])
        empty = [found[network, "explained", "empty", callers] for callers in CALLERS]
        most = (f"{line['rate']:.0f}, at most {line['rate_to_bare']:.2f}" for line in empty)
        rows.append([title, "nothing", *most, " / ".join(f"{line['cpu_ms']:.2f}" for line in empty), "", ""])
    callers = [f"{number} caller{'s' * (number > 1)}" for number in CALLERS]
    return table(["network", "call", *callers, "CPU added, ms", "p50 added at 1, ms", "/ plain at 32"], rows)


def bare_threads(record: Record) -> list[int]:
    """Return the numbers of threads that the bare loop ran with: one, and all."""
    return sorted({int(line["concurrency"]) for line in record.lines if line["kind"] == "bare"})


def by_peer(record: Record) -> dict[str, dict[tuple[str, int, str], Line]]:
    """Return each peer's lines by network, callers and server."""
    peers: dict[str, dict[tuple[str, int, str], Line]] = {}
    for line in record.lines:
        key = str(line["network"]), int(line["concurrency"]), str(line["server"])
        peers.setdefault(str(line["peer"]), {})[key] = line
    return peers


def cases(record: Record) -> list[tuple[str, int]]:
    """Return the networks and numbers of callers that peers were measured with, in the page's order."""
    measured = {(str(line["network"]), int(line["concurrency"])) for line in record.lines}
    return sorted(measured, key=lambda case: (-list(NETWORKS).index(case[0]), case[1]))


def peers_table(record: Record) -> str:
    """Return requests a second and tails of each peer, and how many times as many ours answered beside it."""
    columns = cases(record)
    rows = [
        [
            name,
            *(rate(lines.get((*case, PEER))) for case in columns),
            *(", ".join(times(lines.get((*case, ours))) for case in columns) for ours in (OURS, TYPED)),
        ]
        for name, lines in by_peer(record).items()
    ]
    rows += [
        [f"**{ours}**", *(rate(ours_beside_all(record, case, ours)) for case in columns), "", ""]
        for ours in (OURS, TYPED)
    ]
    heads = [f"{NETWORKS[network]}, {callers}" for network, callers in columns]
    return table(["server", *heads, "ours / theirs, same bytes", "ours / theirs, typed"], rows)


def rate(line: Line | None) -> str:
    """Return "rate (p99)"."""
    return "" if line is None else f"{line['rate']:.0f} ({line['p99_ms']:.0f})"


def times(line: Line | None) -> str:
    """Return how many times the peer's rate ours is."""
    return "" if line is None else f"{line['rate_to_peer']:.2f}"


def ours_beside_all(record: Record, case: tuple[str, int], ours: str) -> Line:
    """Return our median figures over the runs beside each peer."""
    lines = [lines[*case, ours] for lines in by_peer(record).values() if (*case, ours) in lines]
    return {name: median(float(line[name]) for line in lines) for name in ("rate", "p99_ms")}


def measured_by(record: Record) -> str:
    """Return the sentence that says how to measure it anew, and what it was measured on."""
    left = "".join(f" Left out: {name}: {reason}." for name, reason in record.left_out.items())
    return f"`{record.command}`; {record.machine}; {record.software}.{left}"


def page(serving: Record, one_process: Record, peers: Record) -> str:
    """Return the page's text."""
    return f"""# Beside other servers, and beside no server at all
Written by `python -m benchmarks.page` from `benchmarks/results`; [how each figure is
measured](../benchmarks/README.md), [what was wanted and what was missed](results.md#serving). Client and server share
the cores.

## Other servers
{measured_by(peers)}

The same explained file behind each server, two of its processes or threads on two cores, in turns with ours
(`--processes 2`). The others answer raw tensors. Requests a second (99th percentile in ms) with 8 and 32 callers, and
how many times as many ours answered in the same minutes: with the very same bytes (ModelInfer), and with typed reasons
(Explain). More is better.

{peers_table(peers)}

![Requests a second of each server, as a share of ours in the same minutes, a panel for each network](peers.png)

## ONNX Runtime alone
The same file in a bare loop on all cores (on one beside a single caller), no server at all. Requests a second and their
ratio to the bare loop; processor time of the server beyond the bare run, in ms a request, with 1 / 8 / 32 callers; what
a single caller waits longer than the bare run; explained over plain file. "nothing" is an empty server of gRPC for
Python that answers as many bytes at once, and what the bare loop would reach if each run came with such a call: the
most for any server made of gRPC for Python that runs pictures one by one (batches save time with ResNet-18 at 128).

{measured_by(serving)}

{serving_table(serving)}

{measured_by(one_process)}

{serving_table(one_process)}
"""


def picture(record: Record) -> Figure:
    """Draw each server's share of what ours answered in the same minutes, with the most callers.

    A panel for each network. The machine's own speed moves too much from peer to peer to compare plain rates.
    """
    networks = list(dict.fromkeys(network for network, _ in cases(record)))
    callers = max(number for _, number in cases(record))
    figure = Figure(figsize=(5.2 * len(networks), 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        beside = {
            name: (float(lines[network, callers, OURS]["rate_to_peer"]), lines[network, callers, TYPED]["rate_to_peer"])
            for name, lines in by_peer(record).items()
            if (network, callers, OURS) in lines
        }
        bars = {name: 1 / same for name, (same, _) in beside.items()}
        bars |= {OURS: 1.0, TYPED: median(float(typed) / same for same, typed in beside.values())}
        bars = dict(sorted(bars.items(), key=lambda bar: bar[1]))
        drawn = panel.barh(list(bars), list(bars.values()), color=[OUR_COLOURS.get(b, THEIR_COLOUR) for b in bars])
        panel.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
        panel.set_title(f"{NETWORKS[network]}, {callers} callers", fontsize=11)
        panel.set_xlabel("requests a second, ours with the same bytes = 1", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.margins(x=0.14)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def read() -> tuple[Record, Record, Record]:
    """Read what was measured: the server with a process a core, with one process, and its peers."""
    serving, one_process, peers = (
        Record.read(RESULTS / f"{name}.json") for name in ("serving", "serving-one-process", "peers")
    )
    return serving, one_process, peers


def main() -> None:
    """Write the page and its picture."""
    serving, one_process, peers = read()
    PAGE.write_text(page(serving, one_process, peers), encoding="utf-8")
    picture(peers).savefig(PICTURE, metadata={"Software": None})


if __name__ == "__main__":
    main()

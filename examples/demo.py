"""The demo: learn the drawn creatures, serve the result, ask for explained predictions, draw one.

Run it with `make demo`, or `python examples/demo.py` in an environment with pellucid[server,cpu,training,figures].
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from analyzers.explanation import Explanation
from analyzers.figure import draw
from analyzers.ledger import render
from analyzers.pictures import Pictures
from server.client import Client
from training.creatures import creatures

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the whole way from drawing creatures to an explained answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, default=HERE / "creatures.toml")
    parser.add_argument("--models", type=Path, default=Path("models"), help="where the model goes (default models)")
    parser.add_argument("--figure", type=Path, default=Path("demo.png"), help="the picture (default demo.png)")
    parser.add_argument("--pictures", type=int, default=48, help="how many test pictures to ask about")
    options, overrides = parser.parse_known_args()

    print("1. learning eight drawn species (a few minutes on two cores)", flush=True)
    run = [
        sys.executable,
        "-m",
        "training",
        "run",
        str(options.job),
        "--output",
        str(options.models),
        *overrides,
    ]
    subprocess.run(run, check=True)

    print("2. serving the model and asking it over gRPC", flush=True)
    # A seed that the training pictures do not have: the model has never seen these creatures.
    pictures = creatures(options.pictures, seed=12345, size=64, test_share=1.0)
    with serving(options.models) as address, Client(address) as client:
        explanations = client.explain(pictures.encoded, model="creatures", evidence="float16")
    hits = sum(e.predictions[0].class_index == label for e, label in zip(explanations, pictures.label, strict=True))
    print(f"   {hits} of {len(pictures)} new creatures named rightly")

    shown = _clearest(pictures, explanations)
    print("3. one of them explained\n")
    print(render(explanations[shown], f"a {pictures.names[pictures.label[shown]]}"))
    draw(pictures.encoded[shown], explanations[shown], options.figure)
    print(f"\npicture: {options.figure}    model: {options.models / 'creatures' / '1' / 'model.onnx'}")
    print("`make serve` serves it; `pellucid explain PICTURE --server 127.0.0.1:50051` asks it")


@contextmanager
def serving(repository: Path) -> Iterator[str]:
    """Run the server on a free port until the block ends; yields "HOST:PORT"."""
    command = [
        sys.executable,
        "-m",
        "server",
        "--repository",
        str(repository),
        "--port",
        "0",
        "--log-level",
        "warning",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            if not line.startswith("listening on "):
                raise SystemExit("the server did not start; its message stands above")
            yield line.removeprefix("listening on ").strip()
        finally:
            process.terminate()


def _clearest(pictures: Pictures, explanations: list[Explanation]) -> int:
    """Return a rightly named picture whose evidence lies at the most different places."""

    def spread(row: int) -> float:
        answer = explanations[row]
        if answer.predictions[0].class_index != pictures.label[row] or not answer.class_features:
            return -1.0
        places = [(e.part.x, e.part.y) for e in answer.class_features[0].contributions if e.part is not None]
        return float(np.std(places, axis=0).sum()) if len(places) > 1 else 0.0

    return max(range(len(pictures)), key=spread)


if __name__ == "__main__":
    main()

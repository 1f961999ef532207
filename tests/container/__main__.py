"""`python -m tests.container`: build a variant of the image and print what it takes; as root, on Debian."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from analyzers.progress import track
from benchmarks.serving.models import model_name, write_models
from tests.conftest import ROOT
from tests.container.build import ContainerError, missing
from tests.container.rehearse import NETWORK, built, report, start


def write_explained(root: Path) -> Path:
    """Write the explained ResNet-18 that containers are started with; returns its repository."""
    write_models(root / "all", [NETWORK])
    explained = model_name(NETWORK, "explained")
    (root / "models").mkdir()
    return (root / "all" / explained).rename(root / "models" / explained).parent


def main(arguments: list[str]) -> int:
    """Build, start as often as was asked for, and print a table."""
    parser = argparse.ArgumentParser("python -m tests.container", description=__doc__)
    parser.add_argument("--target", choices=("cpu", "gpu"), default="cpu", help="which variant (default cpu)")
    parser.add_argument("--starts", type=int, default=7, help="how often; gpu is never started (default 7)")
    options = parser.parse_args(arguments)
    if lacking := missing():
        print(f"this needs {lacking}", file=sys.stderr)
        return 2
    try:
        with TemporaryDirectory() as folder, built(ROOT, options.target) as image:
            count = options.starts if options.target == "cpu" else 0
            models = write_explained(Path(folder)) if count else Path(folder)
            print(report(image, [start(image, models) for _ in track(range(count), "starting", count)]))
    except ContainerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

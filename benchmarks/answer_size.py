"""How many bytes an explained answer has on the wire: 5 classes, 10 reasons each, by what is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from analyzers.explain import Wanted
from analyzers.geometry import Frame
from pellucid.v1 import explain_pb2 as pb
from server.convert import to_message
from server.load import load_model

FEATURES = frozenset({"class_features"})
CASES = (
    ("the prediction alone: no row", Wanted(frozenset({"explanatory_graph"})), pb.EVIDENCE_TYPE_UNSPECIFIED),
    ("parts", Wanted(frozenset({"parts"})), pb.EVIDENCE_TYPE_UNSPECIFIED),
    ("class features", Wanted(FEATURES), pb.EVIDENCE_TYPE_UNSPECIFIED),
    ("every row", Wanted(), pb.EVIDENCE_TYPE_UNSPECIFIED),
    (
        "class features and evidence, float16",
        Wanted(frozenset({"class_features"}), evidence=True),
        pb.EVIDENCE_TYPE_FLOAT16,
    ),
    ("every row and evidence, float16", Wanted(evidence=True), pb.EVIDENCE_TYPE_FLOAT16),
    ("every row and evidence, float32", Wanted(evidence=True), pb.EVIDENCE_TYPE_FLOAT32),
)


def main() -> None:
    """Print a Markdown table of mean and largest sizes over pictures of noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--pictures", type=int, default=32)
    options = parser.parse_args()
    print("| asked for | " + " | ".join(str(path) for path in options.models) + " |")
    print("|---" * (len(options.models) + 1) + "|")
    models = [load_model(path, "model", "1", device="cpu", threads=1) for path in options.models]
    for title, wanted, evidence in CASES:
        cells = []
        for model in models:
            size = model.manifest.input
            noise = np.random.default_rng(0).random((options.pictures, 3, size.height, size.width), np.float32)
            frames = [Frame(1, 1, size.width, size.height)] * options.pictures
            answers = model.explain(noise, frames, ["0" * 64] * options.pictures, wanted)
            sizes = [to_message(answer, evidence).ByteSize() for answer in answers]
            cells.append(f"{np.mean(sizes):.0f}, at most {max(sizes)}")
        print(f"| {title} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

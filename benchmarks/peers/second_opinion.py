"""Quantus' own pixel flipping and random-logit test on our evidence maps and on maps that know nothing.

    python -m benchmarks.peers.second_opinion --model MODEL.onnx --backbone resnet20 --weights FILE --data PACK

Evidence is laid out pixel by pixel, each with its cell's value; lower area under the flipping curve is better.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np

from analyzers.cell_maps import cell_of_pixels, control_maps
from analyzers.manifest import Manifest
from analyzers.pixels import to_model_input
from analyzers.read_pictures import read_pictures
from analyzers.runtime import open_session
from benchmarks.peers.compare import Classifier  # declares what torchvision asks for, before Quantus loads it

warnings.simplefilter("ignore")
import quantus  # noqa: E402


def main() -> None:
    """Print the mean and its standard error for each map."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=100)
    options = parser.parse_args()
    session = open_session(options.model, threads=1)
    manifest = Manifest.from_metadata(session.metadata)
    section = manifest.class_features
    assert section is not None and section.evidence is not None and section.grid is not None  # noqa: PT018
    network = Classifier(options.backbone, options.weights, manifest).eval()
    pictures = read_pictures(options.data).relabelled(manifest.classes).of_split("test")
    rows = np.sort(np.random.default_rng(0).permutation(len(pictures))[: options.pictures])
    images = to_model_input(pictures.take(rows).decoded(manifest.input.height, manifest.input.width))
    answer = session.run_images(manifest, images)
    number = answer[manifest.scores.tensor].argmax(1)
    inside = cell_of_pixels(section.grid, *images.shape[2:])
    maps = {"evidence": answer[section.evidence][:, 0].astype(np.float64)} | control_maps(images, section.grid)
    print(
        f"Quantus {quantus.__version__}, {len(images)} pictures: area under the pixel-flipping curve, lower is better"
    )
    for name, values in maps.items():
        pixels = values.reshape(len(values), -1)[:, inside][:, None]
        metric = quantus.PixelFlipping(
            features_in_step=16,
            perturb_baseline="mean",
            disable_warnings=True,
            display_progressbar=False,
            normalise=False,
        )
        # Its own area needs a numpy from before 2.4; the curve does not.
        curves = np.array(
            metric(model=network, x_batch=images, y_batch=number, a_batch=pixels, device="cpu", softmax=True)
        )
        areas = (curves[:, 1:] + curves[:, :-1]).mean(1) / 2
        print(f"{name:<10} {areas.mean():.3f} ± {areas.std(ddof=1) / np.sqrt(len(areas)):.3f}")


if __name__ == "__main__":
    main()

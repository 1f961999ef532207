"""What explanations cost and whether they are faithful: ours in the graph, others' in PyTorch, on the same pictures.

    python -m benchmarks.peers.compare --model models/cifar10/1/model.onnx --backbone resnet20 \
        --weights resnet20-12fca82f.safetensors --data cifar10-lossless.npz

Costs are medians of CPU time of one picture, one thread, all methods in turns within one process. Faithfulness is that
of `pellucid-analyze evaluate --quality`, every map brought to the cells of the conv map. Needs torch; captum, grad-cam,
zennit and dianna where they are there; docs/results.md says how the environment is made.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):  # torchvision asks for operators that a CPU build of torch may lack
    if not hasattr(torch.ops.torchvision, operator):
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from safetensors.torch import load_file  # noqa: E402

from analyzers.cell_maps import cell_of_pixels, control_maps, mean_by_cell  # noqa: E402
from analyzers.faithfulness import deletion_insertion, order_of_pixels, road  # noqa: E402
from analyzers.manifest import Manifest  # noqa: E402
from analyzers.pixels import to_model_input  # noqa: E402
from analyzers.read_pictures import read_pictures  # noqa: E402
from analyzers.runtime import Session, open_session, ort  # noqa: E402
from training.backbones import BACKBONES, load_backbone, split_checkpoint  # noqa: E402

Map = Callable[[np.ndarray, int], np.ndarray]
RISE_MASKS, RISE_CELLS = 1000, 7


class Classifier(torch.nn.Module):
    """The checkpoint as PyTorch has it, from pictures in 0..1."""

    def __init__(self, backbone: str, weights: Path, manifest: Manifest) -> None:
        super().__init__()
        tensors, head = split_checkpoint(load_file(weights))
        self.backbone = BACKBONES[backbone]()
        load_backbone(self.backbone, tensors)
        self.head = torch.nn.Linear(*reversed(head["weight"].shape))
        self.head.load_state_dict(head)
        self.register_buffer("mean", torch.tensor(manifest.input.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(manifest.input.std).reshape(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, h, w) -> (batch, classes)."""
        return self.head(self.backbone((x - self.mean) / self.std).mean((2, 3)))


def torch_maps(network: Classifier) -> dict[str, Map]:
    """Return the methods of the libraries that are here: from a picture and a class to a map of any size."""
    found: dict[str, Map] = {}

    def tensor(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image[None]).requires_grad_()

    layer = [module for module in network.backbone.modules() if isinstance(module, torch.nn.Module)]
    last = next(m for m in reversed(list(network.backbone.children())))
    last = list(last.children())[-1] if list(last.children()) else last
    del layer
    with contextlib.suppress(ImportError):
        from captum.attr import IntegratedGradients, LayerGradCam, Occlusion, Saliency

        def captum(method: Any, **options: Any) -> Map:  # noqa: ANN401
            def run(image: np.ndarray, number: int) -> np.ndarray:
                value = method.attribute(tensor(image), target=number, **options)
                return value.detach().numpy()[0].sum(0)

            return run

        def saliency(image: np.ndarray, number: int) -> np.ndarray:
            return np.abs(Saliency(network).attribute(tensor(image), target=number).numpy()[0]).sum(0)

        found["captum Saliency"] = saliency
        found["captum LayerGradCam"] = captum(LayerGradCam(network, last))
        found["captum IntegratedGradients 50"] = captum(
            IntegratedGradients(network), n_steps=50, internal_batch_size=25
        )
        found["captum Occlusion"] = captum(Occlusion(network), sliding_window_shapes=(3, 4, 4), strides=(3, 2, 2))
    with contextlib.suppress(ImportError):
        from pytorch_grad_cam import EigenCAM, GradCAM, HiResCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        def cam(kind: Any) -> Map:  # noqa: ANN401
            def run(image: np.ndarray, number: int) -> np.ndarray:
                with kind(model=network, target_layers=[last]) as method:
                    return method(input_tensor=tensor(image), targets=[ClassifierOutputTarget(number)])[0]

            return run

        for kind in (GradCAM, HiResCAM, EigenCAM):
            found[f"grad-cam {kind.__name__}"] = cam(kind)
    with contextlib.suppress(ImportError):
        from zennit.attribution import Gradient
        from zennit.composites import EpsilonPlusFlat

        def lrp(image: np.ndarray, number: int) -> np.ndarray:
            with Gradient(model=network, composite=EpsilonPlusFlat()) as attributor:
                target = torch.eye(network.head.out_features)[[number]]
                return attributor(tensor(image), target)[1].detach().numpy()[0].sum(0)

        found["zennit LRP EpsilonPlusFlat"] = lrp
    return found


def rise(session: Session, manifest: Manifest) -> Map:
    """RISE (Petsiuk et al., BMVC 2018) through ONNX Runtime: 1,000 random masks of 7 x 7 cells, half of them open."""
    random = np.random.default_rng(0)
    size = (manifest.input.height, manifest.input.width)
    masks = np.stack([_mask(random, size) for _ in range(RISE_MASKS)]).astype(np.float32)

    def run(image: np.ndarray, number: int) -> np.ndarray:
        total = np.zeros(size)
        for start in range(0, RISE_MASKS, 50):
            chosen = masks[start : start + 50]
            logits = session.run({manifest.input.tensor: image * chosen[:, None]}, [manifest.scores.tensor])
            values = logits[manifest.scores.tensor].astype(np.float64)
            raised = np.exp(values - values.max(1, keepdims=True))
            total += np.tensordot(raised[:, number] / raised.sum(1), chosen, 1)
        return total

    return run


def dianna_rise(path: Path) -> Map:
    """DIANNA's RISE, which takes the ONNX file itself and loads it anew for each picture."""
    import dianna

    def run(image: np.ndarray, number: int) -> np.ndarray:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            found = dianna.explain_image(
                str(path), image, "RISE", labels=[number], axis_labels={0: "channels"}, n_masks=RISE_MASKS, p_keep=0.5
            )
        return np.asarray(found)[0]

    return run


def _mask(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    coarse = (random.random((RISE_CELLS + 1, RISE_CELLS + 1)) < 0.5).astype(np.float64)
    places = [np.linspace(0, RISE_CELLS - 1, n) + random.random() for n in size]
    low = [np.floor(place).astype(int) for place in places]
    share = [place - whole for place, whole in zip(places, low, strict=True)]
    rows = coarse[low[0]] * (1 - share[0])[:, None] + coarse[low[0] + 1] * share[0][:, None]
    return rows[:, low[1]] * (1 - share[1]) + rows[:, low[1] + 1] * share[1]


def to_cells(values: np.ndarray, inside: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Bring a map of any size to cells: means over pixels, or the cells themselves."""
    if values.shape == grid:
        return values
    rows = np.linspace(0, values.shape[0] - 1, inside.shape[0]).round().astype(int)
    columns = np.linspace(0, values.shape[1] - 1, inside.shape[1]).round().astype(int)
    return mean_by_cell(values[rows][:, columns][None], inside, grid[0] * grid[1])[0].reshape(grid)


def main() -> None:
    """Print costs and faithfulness as Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", type=Path, required=True, help="the plain ONNX file")
    parser.add_argument("--model", type=Path, required=True, help="the explained one")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain, explained = open_session(options.plain, threads=1), open_session(options.model, threads=1)
    manifest = Manifest.from_metadata(explained.metadata)
    section, source, scores = manifest.class_features, manifest.input.tensor, manifest.scores.tensor
    assert section is not None and section.evidence is not None and section.grid is not None  # noqa: PT018
    network = Classifier(options.backbone, options.weights, manifest).eval()
    pictures = read_pictures(options.data).relabelled(manifest.classes).of_split("test")
    rows = np.sort(np.random.default_rng(0).permutation(len(pictures))[: options.pictures])
    images = to_model_input(pictures.take(rows).decoded(manifest.input.height, manifest.input.width))
    number = explained.run({source: images}, [scores])[scores].argmax(1)
    evidence = section.evidence
    methods: dict[str, Map] = {
        "Pellucid, in the graph": lambda image, _: explained.run({source: image[None]}, [evidence])[evidence][0, 0]
    }
    with contextlib.redirect_stdout(io.StringIO()):
        methods |= torch_maps(network)
    methods["RISE 1000, ONNX Runtime"] = rise(plain, manifest)
    with contextlib.suppress(ImportError):
        methods["RISE 1000, DIANNA"] = dianna_rise(options.plain)
    report = {
        "threads": 1,
        "cost": cost(methods, plain, explained, network, manifest, images, number, options.rounds),
        "faithfulness": faithfulness(methods, explained, manifest, images, number),
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def cost(
    methods: dict[str, Map],
    plain: Session,
    explained: Session,
    network: Classifier,
    manifest: Manifest,
    images: np.ndarray,
    number: np.ndarray,
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Print and return the median CPU time of one picture."""
    source = manifest.input.tensor
    runs: dict[str, Callable[[np.ndarray, int], object]] = {
        "ONNX Runtime, plain": lambda image, _: plain.run({source: image[None]}),
        "ONNX Runtime, explained: all rows, all its classes": lambda image, _: explained.run_images(
            manifest, image[None]
        ),
        "PyTorch, forward": lambda image, _: network(torch.from_numpy(image[None])),
    }
    runs |= {name: method for name, method in methods.items() if name != "Pellucid, in the graph"}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            if name.startswith("RISE") and turn > rounds // 3 + 2:
                continue
            for _ in range(20 if "ONNX Runtime," in name and not name.startswith("RISE") else 1):
                began = time.process_time()
                run(images[turn % len(images)], int(number[turn % len(images)]))
                if turn > 1:
                    times[name].append(time.process_time() - began)
    base = float(np.median(times["ONNX Runtime, plain"]))
    print(f"\nONNX Runtime {ort.__version__}, PyTorch {torch.__version__}, one thread, CPU time of one picture\n")
    print("| | ms | times plain |\n|---|---|---|")
    report = {}
    for name, values in times.items():
        middle = float(np.median(values))
        report[name] = {"ms": middle * 1e3, "times_plain": middle / base}
        print(f"| {name} | {middle * 1e3:.2f} | {middle / base:.2f} |")
    return report


def faithfulness(
    methods: dict[str, Map], explained: Session, manifest: Manifest, images: np.ndarray, number: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Print and return insertion - deletion and ROAD of every method and control, and paired differences to ours."""
    section, source, scores = manifest.class_features, manifest.input.tensor, manifest.scores.tensor
    assert section is not None and section.grid is not None  # noqa: PT018
    grid = section.grid
    inside = cell_of_pixels(grid, *images.shape[2:])
    controls = control_maps(images, grid)

    def score(batch: np.ndarray, c: int) -> np.ndarray:
        values = explained.run({source: batch}, [scores])[scores].astype(np.float64)
        raised = np.exp(values - values.max(1, keepdims=True))
        return raised[:, c] / raised.sum(1)

    found: dict[str, np.ndarray] = {}
    names = [*methods, *controls]
    for name in names:
        table = []
        for row, image in enumerate(images):
            c = int(number[row])
            values = controls[name][row] if name in controls else to_cells(methods[name](image, c), inside, grid.cells)
            order = order_of_pixels(values, inside)
            cells = grid.cells[0] * grid.cells[1]
            line = []
            for fill in ("mean", "blur"):
                deletion, insertion = deletion_insertion(image, order, cells, score, c, fill)
                line.append(insertion - deletion)
            line.append(road(image, order, cells, score, c, np.random.default_rng([0, row])))
            table.append(line)
        found[name] = np.array(table)
    ours = found["Pellucid, in the graph"]
    print(f"\n{len(images)} pictures, {grid.cells} cells; insertion - deletion and ROAD, higher is better; in brackets")
    print("the paired difference to ours in standard errors\n")
    print("| map | ins - del, mean | ins - del, blur | ROAD |\n|---|---|---|---|")
    report: dict[str, dict[str, Any]] = {}
    for name, table in sorted(found.items(), key=lambda item: -item[1][:, 0].mean()):
        cells_ = []
        report[name] = {}
        for column, metric in enumerate(("mean", "blur", "road")):
            values = table[:, column]
            difference = values - ours[:, column]
            error = difference.std(ddof=1) / np.sqrt(len(values))
            figure = {
                "value": float(values.mean()),
                "standard_error": float(values.std(ddof=1) / np.sqrt(len(values))),
                "difference_to_ours": float(difference.mean()),
                "difference_error": float(error),
            }
            report[name][metric] = figure
            away = "" if error == 0 else f" ({difference.mean() / error:+.1f})"
            cells_.append(f"{figure['value']:.3f} ± {figure['standard_error']:.3f}{away}")
        print(f"| {name} | {' | '.join(cells_)} |")
    return report


if __name__ == "__main__":
    main()

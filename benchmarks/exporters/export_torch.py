"""Classifiers of torchvision and timm with random weights, by both of torch's exporters.

    python export_torch.py FOLDER

Needs torch, onnx and onnxscript, and torchvision and timm (both `pip install --no-deps`), in an environment of its own.
"""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path

import torch

# torchvision's Python code asks for operators that a CPU build of torch may lack; none of these networks uses them.
library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm  # noqa: E402
import torchvision.models as vision  # noqa: E402

SIZE, CLASSES = 96, 10

TORCHVISION = {
    "resnet18": {},
    "vgg11_bn": {},
    "alexnet": {},
    "squeezenet1_1": {},
    "densenet121": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "efficientnet_b0": {},
    "shufflenet_v2_x0_5": {},
    "mnasnet0_5": {},
    "regnet_y_400mf": {},
    "googlenet": {"init_weights": True, "aux_logits": False},
    "convnext_tiny": {},
}
TIMM = (
    "resnet10t",
    "resnetv2_50",
    "vit_tiny_patch16_224",
    "efficientnet_lite0",
    "repvgg_a0",
    "ghostnet_050",
    "mobilevit_xxs",
    "resnet50_clip",
    "hardcorenas_a",
    "dla34",
    "mobilenetv3_small_050",
    "convnext_atto",
    "mixer_s32_224",
)


def networks() -> dict[str, types.SimpleNamespace]:
    """Return how to build each network, and its picture size."""
    made = {}
    for name, options in TORCHVISION.items():
        made[f"torchvision-{name}"] = types.SimpleNamespace(
            build=lambda name=name, options=options: getattr(vision, name)(num_classes=CLASSES, **options), size=SIZE
        )
    for name in TIMM:
        size = 224 if any(key in name for key in ("vit_", "mixer", "clip")) else SIZE
        made[f"timm-{name}"] = types.SimpleNamespace(
            build=lambda name=name: timm.create_model(name, num_classes=CLASSES), size=size
        )
    return made


def main(folder: Path) -> None:
    """Write `EXPORTER-NETWORK.onnx` files."""
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for name, network in networks().items():
        torch.manual_seed(0)
        try:
            model = network.build().eval()
        except Exception as error:
            print(f"{name}: not built: {str(error)[:100]}")
            continue
        # Random running statistics: batch normalisation that does nothing would hide mistakes.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        example = torch.rand(2, 3, network.size, network.size)
        for exporter in ("dynamo", "torchscript"):
            path = folder / f"{exporter}-{name}.onnx"
            try:
                if exporter == "dynamo":
                    torch.onnx.export(
                        model,
                        (example,),
                        str(path),
                        dynamo=True,
                        input_names=["input"],
                        verbose=False,
                        dynamic_shapes=({0: torch.export.Dim("batch")},),
                    )
                else:
                    # The batch axis stays frozen at 1, as most people export.
                    torch.onnx.export(model, (example[:1],), str(path), dynamo=False, input_names=["input"])
                print(f"{path.name}: written", flush=True)
            except Exception as error:
                print(f"{path.name}: not exported: {' '.join(str(error).split())[:120]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

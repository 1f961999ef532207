from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.backbones import BACKBONES, load_backbone, split_checkpoint
from training.network import Network


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("small", 64, (128, 8, 8)),
        ("small-stride4", 64, (128, 16, 16)),
        ("resnet20", 32, (64, 8, 8)),
        ("resnet56", 32, (64, 8, 8)),
        ("resnet18", 224, (512, 7, 7)),
        ("resnet18-stride16", 224, (512, 14, 14)),
    ],
)
def test_a_backbone_ends_in_the_map_it_promises(name: str, size: int, shape: tuple[int, ...]) -> None:
    backbone = BACKBONES[name]().eval()
    with torch.no_grad():
        assert tuple(backbone(torch.zeros(1, 3, size, size)).shape[1:]) == shape
    assert backbone.channels == shape[0]


def test_resnet18_has_torchvision_s_size() -> None:
    count = sum(p.numel() for p in BACKBONES["resnet18"]().parameters())
    assert count + 512 * 1000 + 1000 == 11_689_512


def test_resnet20_has_the_published_size() -> None:
    network = Network(BACKBONES["resnet20"](), 10, size=32)
    assert sum(p.numel() for p in network.parameters()) == 269_722


def test_a_prefixed_checkpoint_is_split_into_backbone_and_head() -> None:
    source = BACKBONES["resnet20"]()
    tensors = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    tensors |= {"module.linear.weight": torch.ones(10, 64), "module.linear.bias": torch.zeros(10)}
    backbone, head = split_checkpoint(tensors)
    load_backbone(BACKBONES["resnet20"](), backbone)
    assert {name: tuple(t.shape) for name, t in head.items()} == {"weight": (10, 64), "bias": (10,)}


def test_weights_that_do_not_fit_are_named() -> None:
    tensors = BACKBONES["resnet32"]().state_dict()
    del tensors["conv1.weight"]
    tensors["bn1.weight"] = torch.ones(17)
    with pytest.raises(ValueError, match=r"bn1.weight has shape \[17\], expected \[16\].*conv1.weight is missing"):
        load_backbone(BACKBONES["resnet20"](), tensors)


def test_the_third_party_resnet20_keeps_its_accuracy_on_real_pictures(shared_data: Path) -> None:
    from safetensors.torch import load_file

    from analyzers.pictures import read_pictures
    from analyzers.pixels import to_model_input

    backbone, head = split_checkpoint(load_file(shared_data / "resnet20-12fca82f.safetensors"))
    network = Network(BACKBONES["resnet20"](), 10, size=32).eval()
    load_backbone(network.backbone, backbone)
    network.head.load_state_dict(head, strict=False)
    test = read_pictures(shared_data / "cifar10-lossless.npz").of_split("test")
    with torch.no_grad():
        best = network(torch.from_numpy(to_model_input(test.decoded(32, 32))))[0].argmax(1).numpy()
    assert (best == test.label).mean() > 0.89  # 91.78 % stated; standard error 1.3 points on 450 pictures

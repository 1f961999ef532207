"""Weights of others: read as tensors, put into a backbone, and refused in a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from analyzers.errors import DataError
from training.backbones import BACKBONES, Backbone
from training.weights import load_pretrained, read_weights


class Opens:
    """A pickle that makes a folder when it is loaded as one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.folder),)


def resnet(name: str = "resnet20", seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return BACKBONES[name]()


@pytest.mark.parametrize("form", ["safetensors", "pth", "pth with state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_and_its_classifier_go_into_the_backbone_without_it(
    tmp_path: Path, form: str, prefix: str
) -> None:
    source, other = resnet(seed=1).eval(), resnet(seed=2).eval()
    tensors = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    tensors |= {f"{prefix}linear.weight": torch.ones(10, 64), f"{prefix}linear.bias": torch.zeros(10)}
    path = tmp_path / f"weights.{form.split()[0]}"
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors} if "state_dict" in form else tensors, path)
    load_pretrained(other, path)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(source(x), other(x))


def test_code_in_a_file_is_not_run_and_the_file_refused(tmp_path: Path) -> None:
    path, folder = tmp_path / "weights.pth", tmp_path / "made by code"
    torch.save({"state_dict": resnet().state_dict(), "epoch": Opens(folder)}, path)
    with pytest.raises(DataError, match="holds objects beside tensors, which could run code and are not loaded; save"):
        read_weights(path)
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_pretrained(resnet(), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*nowhere\.pth"):
        read_weights(tmp_path / "nowhere.pth")


def test_weights_of_another_network_are_refused_naming_the_first_few(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(resnet("resnet32").state_dict(), path)
    with pytest.raises(DataError, match=r"unknown; .* and \d+ more; give the backbone that the file was made for"):
        load_pretrained(resnet(), path)
    tensors = resnet().state_dict()
    tensors["bn1.weight"] = torch.ones(17)
    save_file(tensors, path)
    with pytest.raises(DataError, match=r"bn1.weight has shape \[17\], expected \[16\]; give the backbone"):
        load_pretrained(resnet(), path)


def test_the_third_party_networks_load(shared_data: Path) -> None:
    for name, file in {"resnet20": "resnet20-12fca82f", "resnet32": "resnet32-d509ac18"}.items():
        backbone = resnet(name)
        before = backbone.conv1.weight.clone()
        load_pretrained(backbone, shared_data / f"{file}.safetensors")
        assert not torch.equal(backbone.conv1.weight, before)

"""Weights that others trained: read from a file without running any code in it, and put into a backbone."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor

from analyzers.errors import DataError
from training.backbones import Backbone, load_backbone, split_checkpoint


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a state dict that torch saved.

    Raises:
        DataError: there is no such file, it is damaged, or it holds more than tensors; code in it is never run.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except UnpicklingError:
        raise DataError(
            f"{path} is not a readable checkpoint: it is damaged or holds objects beside tensors, which could run code"
            " and are not loaded; save the network's state dict alone, with torch.save or as safetensors"
        ) from None
    except Exception as error:  # safetensors and torch raise unrelated classes
        raise DataError(f"{path} is not a readable checkpoint: {' '.join(str(error).split())[:200]}") from None
    tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise DataError(f"{path} holds no state dict of tensors")
    return tensors


def load_pretrained(backbone: Backbone, path: Path) -> None:
    """Load a checkpoint's weights but for its classifier.

    Raises:
        DataError: the file cannot be read, or is of another network; the first few tensors are named.
    """
    weights, _ = split_checkpoint(read_weights(path))
    try:
        load_backbone(backbone, weights)
    except ValueError as error:
        raise DataError(f"{path}: {error}; give the backbone that the file was made for") from None

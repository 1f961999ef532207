"""Checkpoints: everything that a run needs to go on bit for bit, written whole after every epoch."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from analyzers.errors import PellucidError
from analyzers.files import write_atomically
from training.job import Job

FILE = "checkpoint.pt"


class CheckpointError(PellucidError):
    """A checkpoint cannot be used."""


def save(path: Path, job: Job, state: dict[str, Any]) -> None:
    """Write the state of a run; a reader sees the last epoch's or this one's, never a part.

    Raises:
        OSError: the disk is full, say; the last checkpoint is untouched then.
    """
    buffer = io.BytesIO()
    torch.save(state | {"job": _identity(job)}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path, job: Job) -> dict[str, Any] | None:
    """Return the state of an interrupted run of this job, or None where there is none.

    Raises:
        CheckpointError: the file is damaged, or of another job; the message says where they differ.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        other = json.loads(state.pop("job"))
    except Exception as error:  # torch, zipfile and pickle raise unrelated classes
        raise CheckpointError(f"{path} is damaged ({str(error)[:100]}); remove it to start anew") from None
    own = json.loads(_identity(job))
    differing = [
        f"{section}.{key}"
        for section in own
        for key in (own[section] if isinstance(own[section], dict) else {})
        if own[section][key] != other.get(section, {}).get(key)
    ]
    if own != other:
        raise CheckpointError(
            f"{path} belongs to another job (it differs in {', '.join(differing[:5]) or 'its name'});"
            " remove it, or give the job as it was"
        )
    return state


def _identity(job: Job) -> str:
    """Return what two runs must share for one to go on where the other stopped."""
    return job.model_dump_json(exclude={"output": True, "version": True, "train": {"threads", "tensorboard"}})

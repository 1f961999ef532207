"""What was learned so far, on disk: a file for each block of filters, written whole, so that a killed run goes on.

A block's file holds the nodes of some filters of one layer of one graph and where they were found in every picture.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.errors import DataError
from analyzers.files import write_atomically
from training.ranks import Ranks

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]

JOB = "job.json"


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes of some filters, v of them, and p pictures: first the graph's own, then those of reference.

    Attributes:
        filter: (v,).
        prior: (v, 2).
        sigma: (v,).
        spread: (v,).
        parents: (v, M) node numbers in the layer above.
        cell: (v, p) row-major cell of each node in each picture.
        score: (v, p) its log score there.
        factors: (filters, 3) number of each filter, its scale and its floor.
    """

    filter: Int32Array
    prior: Float32Array
    sigma: Float32Array
    spread: Float32Array
    parents: Int32Array
    cell: Int32Array
    score: Float32Array
    factors: Float32Array


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of a run beside its output.

    Attributes:
        folder: removed when the run is done.
    """

    folder: Path

    def open(self, job: dict[str, Any], *, resume: bool) -> None:
        """Start anew, or go on with what an earlier run of the same job left.

        Raises:
            DataError: the earlier run was another one.
        """
        file, text = self.folder / JOB, json.dumps(job, sort_keys=True)
        if resume and file.is_file():
            if file.read_text(encoding="utf-8") != text:
                raise DataError(
                    f"{self.folder} holds another run (its model, pictures or options differ);"
                    " give the same ones, or leave --resume out to start anew"
                )
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        write_atomically(file, text.encode())

    def cache(self, ranks: Ranks) -> Path:
        """Return where a process keeps feature maps; of several, each has an empty folder of its own."""
        if ranks.count == 1:
            return self.folder
        own = self.folder / f"process{ranks.number}"
        shutil.rmtree(own, ignore_errors=True)  # whether its maps are complete, the others could not know
        own.mkdir(parents=True)
        return own

    def read(self, name: str) -> Block | None:
        """Return a block that is done, or None."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as pack:
            return Block(**{field.name: pack[field.name] for field in fields(Block)})

    def write(self, name: str, block: Block) -> None:
        """Keep a block; its file appears whole or not at all."""
        buffer = io.BytesIO()
        arrays: Any = {field.name: getattr(block, field.name) for field in fields(Block)}
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomically(self.folder / f"{name}.npz", buffer.getvalue())

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

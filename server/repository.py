"""Repository: from names and versions to models; one bad file never stops the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from analyzers.errors import ModelError, PellucidError
from analyzers.runtime import CPU, Device, RuntimeNotReadyError
from server.errors import RefusedModelError, UnknownModelError
from server.model import ExplainedModel

log = logging.getLogger("pellucid.repository")

FILE = "model.onnx"
MAX_PROBLEM = 300

Loader = Callable[[Path, str, str], ExplainedModel]


class RepositoryError(PellucidError):
    """The repository folder itself cannot be used."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version: a model that is ready, or the reason why it is not."""

    name: str
    version: str
    model: ExplainedModel | None
    problem: str = ""


class Repository:
    """All models below a folder `<root>/<name>/<version>/model.onnx`."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = {(entry.name, entry.version): entry for entry in entries}

    @classmethod
    def load(cls, root: Path, loader: Loader, *, device: Device) -> Repository:
        """Load every version of every model by `loader(path, name, version)`.

        Raises:
            RepositoryError: there is no such folder.
            RuntimeNotReadyError: the GPU was asked for and cannot be had.
        """
        if not root.is_dir():
            raise RepositoryError(f"there is no folder {root}; expected NAME/VERSION/{FILE} files below it")
        entries = [
            _load(folder, loader, device)
            for model in sorted(root.iterdir())
            if model.is_dir() and not model.name.startswith(".")
            for folder in sorted(model.iterdir(), key=lambda path: (len(path.name), path.name))
            if folder.is_dir() and folder.name.isdecimal()
        ]
        if not entries:
            log.warning("no models below %s; expected NAME/VERSION/%s with a number for VERSION", root, FILE)
        return cls(entries)

    @property
    def entries(self) -> list[Entry]:
        """Every version, refused ones included, sorted by name and version."""
        return sorted(self._entries.values(), key=lambda entry: (entry.name, int(entry.version)))

    def get(self, name: str, version: str) -> ExplainedModel:
        """Return a model that is ready; the only model where `name` is empty, the highest version where `version` is.

        Raises:
            UnknownModelError: there is none of that name or version; the message lists what there is.
            RefusedModelError: it is there but was refused; the message says why.
        """
        names = sorted({entry.name for entry in self.entries})
        if not name and len(names) == 1:
            name = names[0]
        versions = [entry for entry in self.entries if entry.name == name]
        if not versions:
            wanted = f"'{name[:80]}'" if name else "without a name"
            raise UnknownModelError(
                name, f"model: there is no model {wanted}; there are {', '.join(names[:20]) or 'none'}"
            )
        if version:
            entry = self._entries.get((name, version))
            if entry is None:
                there = ", ".join(entry.version for entry in versions[:20])
                raise UnknownModelError(
                    f"{name}/{version}", f"version: '{name}' has no version '{version[:20]}'; there are {there}"
                )
        else:
            entry = next((entry for entry in reversed(versions) if entry.model is not None), versions[-1])
        if entry.model is None:
            raise RefusedModelError(
                f"{name}/{entry.version}", f"model: '{name}' version {entry.version} was refused: {entry.problem}"
            )
        return entry.model


def _load(folder: Path, loader: Loader, device: Device) -> Entry:
    name, version = folder.parent.name, folder.name
    try:
        model = loader(folder / FILE, name, version)
    except RuntimeNotReadyError:
        raise
    except ModelError as error:
        problem = " ".join(str(error).split())[:MAX_PROBLEM]  # it may quote names from the file
        log.error("%s/%s refused: %s", name, version, problem)
        return Entry(name, version, None, problem)
    except Exception:  # a damaged file may fail anywhere, a manifest may ask for all memory
        log.exception("%s/%s refused", name, version)
        return Entry(name, version, None, "the file cannot be loaded; the server's log says more")
    log.info(
        "%s/%s ready: %s, %s",
        name,
        version,
        model.session.provider,
        ", ".join(model.manifest.rows) or "plain",
    )
    if device == "auto" and model.session.provider == CPU:
        log.info("%s/%s runs on the CPU: no GPU can be used here", name, version)
    return Entry(name, version, model)

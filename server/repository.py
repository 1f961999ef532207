"""Repository: from names and versions to models; one bad file never stops the others, nor a good one before it.

What is served is one immutable table that readers take without a lock; every change makes a new one. A model that is
replaced or unloaded only loses its place in the table: requests that hold it finish with it, then its memory goes.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from analyzers.errors import ModelError, PellucidError
from analyzers.runtime import RuntimeNotReadyError
from server.call import note_model
from server.entry import Entry, Table, absent, find, refusal
from server.errors import RefusedModelError, clip
from server.layout import FILE, Found, Signature, is_safe, names_on_disk, strange_names, versions_on_disk, within
from server.memory import give_back_memory
from server.model import ExplainedModel

log = logging.getLogger("pellucid.repository")

MAX_PROBLEM_BYTES = 300
LOADERS = 2  # models loaded at a time at the start; each takes a process of its own first
Loader = Callable[[Path, str, str], ExplainedModel]
Versions = Literal["latest", "all"] | int


class RepositoryError(PellucidError):
    """The repository folder itself cannot be used."""


@dataclass(slots=True)
class _Shelf:
    """What is remembered of one name; whoever holds the lock changes it.

    Attributes:
        lock: held for as long as a load or unload of this name takes.
        tried: signatures of the files that were loaded or refused, by version.
        closed: whether it was unloaded by hand.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    tried: dict[str, Signature | None] = field(default_factory=dict)
    closed: bool = False


class Repository:
    """All models below a folder `<root>/<name>/<version>/model.onnx`; thread-safe.

    Args:
        root: the folder.
        loader: makes a model of (path, name, version), or raises ModelError.
        versions: which of each model are served.
    """

    def __init__(self, root: Path, loader: Loader, versions: Versions) -> None:
        self._root = root
        self._loader = loader
        self._most = {"latest": 1, "all": None}[versions] if isinstance(versions, str) else versions
        self._table: Table = {}
        self._shelves: dict[str, _Shelf] = {}
        self._leaving: list[tuple[Entry, weakref.ref[object]]] = []
        self._changed = False  # whether a model has come or gone since memory was last given back
        self._lock = threading.Lock()  # for the moment in which any of these is exchanged

    @classmethod
    def open(cls, root: Path, loader: Loader, *, versions: Versions) -> Repository:
        """Load what the policy says of every model.

        Raises:
            RepositoryError: there is no such folder.
            RuntimeNotReadyError: the GPU was asked for and cannot be had.
        """
        if not root.is_dir():
            raise RepositoryError(f"there is no folder {root}; expected NAME/VERSION/{FILE} files below it")
        for strange in strange_names(root):
            log.warning("the folder %s is left out: its name cannot be a model's", strange)
        repository = cls(root, loader, versions)
        with ThreadPoolExecutor(LOADERS, "load") as threads:
            list(threads.map(repository._open_name, names_on_disk(root)))
        repository._tidy()
        if not repository.entries:
            log.warning("no models below %s; expected NAME/VERSION/%s with a number for VERSION", root, FILE)
        return repository

    @property
    def entries(self) -> list[Entry]:
        """Every version that was loaded or tried, sorted by name and version; does not look at the disk."""
        table = self._table
        return [entry for name in sorted(table) for entry in table[name]]

    def get(self, name: str, version: str) -> ExplainedModel:
        """Return a model that is ready; the only model where `name` is empty, the highest version where `version` is.

        Raises:
            UnknownModelError: there is none of that name or version, or it is not loaded; the message says which are.
            RefusedModelError: it is there but was refused; the message says why.
        """
        model = find(self._table, name, version)
        note_model(model.name, model.version)
        return model

    def index(self) -> list[Entry]:
        """Return every version on disk, loaded or on its way out, sorted by name and version; looks at the disk."""
        found = {(entry.name, entry.version): entry for entry in self._on_disk()}
        self._tidy()
        with self._lock:
            leaving = {(entry.name, entry.version): entry for entry, _ in self._leaving}
        loaded = {(entry.name, entry.version): entry for entry in self.entries}
        gone = {key: entry for key, entry in leaving.items() if key not in loaded or loaded[key].model is None}
        return [
            entry
            for _, entry in sorted((found | loaded | gone).items(), key=lambda item: (item[0][0], int(item[0][1])))
        ]

    def load(self, name: str) -> None:
        """Load or reload what the policy says of a model, files included that were refused before; blocks.

        Raises:
            UnknownModelError: there is no such model on disk.
            RefusedModelError: a file was refused; what answered before still does.
        """
        shelf = self._known(name)
        with shelf.lock:
            shelf.closed = False
            shelf.tried.clear()
            refused = self._refresh(name, shelf)
        self._tidy()
        if not self._table.get(name):
            raise absent(self._table, name, "")
        if refused:
            raise RefusedModelError(f"{name}/{refused[0].version}", refusal(refused[0]))

    def unload(self, name: str) -> None:
        """Let go of all versions of a model until it is loaded by hand; blocks while it is being loaded.

        Raises:
            UnknownModelError: there is no such model.
        """
        shelf = self._known(name)
        with shelf.lock:
            known = self._table.get(name, ())
            if not known:
                raise absent(self._table, name, "")
            shelf.closed = True
            shelf.tried.clear()
            gone = Entry(name, "", None, "was unloaded; load it to have it back", "UNAVAILABLE")
            self._publish(name, [replace(gone, version=entry.version) for entry in known])
            del known
        self._tidy()
        log.info("%s unloaded", name)

    def poll(self) -> None:
        """Look for versions that are new, changed or gone, and load or let go of them; blocks.

        A file that was refused is not tried again until it changes. A name that is being loaded is left for next time.
        """
        try:
            names = {*names_on_disk(self._root), *self._table}
        except OSError as error:  # a disk that is away for a while is no reason to stop serving
            log.warning("the repository cannot be read, everything stays as it is: %s", error.strerror)
            return
        for name in sorted(names):
            shelf = self._shelf(name)
            if not shelf.lock.acquire(blocking=False):
                continue
            try:
                shelf.closed = shelf.closed and bool(versions_on_disk(self._root, name))
                if not shelf.closed:
                    self._refresh(name, shelf)
            except Exception:
                log.exception("%s could not be looked at", name)
            finally:
                shelf.lock.release()
        self._tidy()

    def _open_name(self, name: str) -> None:
        shelf = self._shelf(name)
        with shelf.lock:
            self._refresh(name, shelf, starting=True)

    def _known(self, name: str) -> _Shelf:
        """Return what is remembered of a name that a client sent.

        Raises:
            UnknownModelError: there is no such model, neither loaded nor on disk.
        """
        if name not in self._table and not (is_safe(name) and versions_on_disk(self._root, name)):
            raise absent(self._table, name, "")
        return self._shelf(name)

    def _shelf(self, name: str) -> _Shelf:
        with self._lock:
            return self._shelves.setdefault(name, _Shelf())

    def _on_disk(self) -> Iterable[Entry]:
        try:
            names = names_on_disk(self._root)
        except OSError:
            names = []
        for name in names:
            for found in versions_on_disk(self._root, name):
                yield Entry(name, found.version, None, "is not loaded", "UNAVAILABLE")

    def _refresh(self, name: str, shelf: _Shelf, *, starting: bool = False) -> list[Entry]:
        """Bring the table up to what the disk and the policy say of a name; return what was refused just now."""
        before = {entry.version: entry for entry in self._table.get(name, ())}
        entries: list[Entry] = []
        refused: list[Entry] = []
        ready = 0
        for found in versions_on_disk(self._root, name):
            if self._most is not None and ready >= self._most:
                shelf.tried.pop(found.version, None)
                older = f"is not loaded: the server serves the newest {self._most} of each model"
                entries.append(Entry(name, found.version, None, older, "UNAVAILABLE"))
                continue
            entry, tried = self._bring(name, found, before.get(found.version), shelf, starting=starting)
            ready += entry.model is not None
            entries.append(entry)
            if tried and entry.refused:
                refused.append(entry)
        self._publish(name, entries)
        return refused

    def _bring(
        self, name: str, found: Found, before: Entry | None, shelf: _Shelf, *, starting: bool
    ) -> tuple[Entry, bool]:
        """Return a version as it is to be from now on, and whether its file was tried for that."""
        old = None if before is None else before.model
        if before is not None and found.version in shelf.tried and shelf.tried[found.version] == found.signature:
            return before, False
        if found.signature is None:
            shelf.tried[found.version] = None
            return Entry(name, found.version, None, f"there is no {FILE}", "UNAVAILABLE", refused=True), True
        if old is None and not starting:
            loading = Entry(name, found.version, None, "is being loaded", "LOADING")
            others = [entry for entry in self._table.get(name, ()) if entry.version != found.version]
            self._publish(name, [*others, loading])
        shelf.tried[found.version] = found.signature
        model, problem = self._load(name, found, starting=starting)
        if model is not None:
            return Entry(name, found.version, model), True
        if old is not None:
            kept = f"its file was replaced by one that was refused, the one before still answers: {problem}"
            return Entry(name, found.version, old, clip(kept, MAX_PROBLEM_BYTES), refused=True), True
        return Entry(name, found.version, None, problem, "UNAVAILABLE", refused=True), True

    def _load(self, name: str, found: Found, *, starting: bool) -> tuple[ExplainedModel | None, str]:
        """Return the model, or why there is none."""
        title = f"{name}/{found.version}"
        try:
            model = self._loader(within(self._root, found.path), name, found.version)
        except (ModelError, RuntimeNotReadyError) as error:
            if starting and isinstance(error, RuntimeNotReadyError):
                raise
            problem = _sentence(error)
            log.error("%s refused: %s", title, problem)
            return None, problem
        except Exception:  # a damaged file may fail anywhere
            log.exception("%s refused", title)
            return None, "the file cannot be loaded; the server's log says more"
        log.info("%s ready: %s, %s", title, model.session.provider, ", ".join(model.manifest.rows) or "plain")
        return model, ""

    def _publish(self, name: str, entries: list[Entry]) -> None:
        """Put a name's entries, newest first or not, into a new table; what is no longer in it is on its way out."""
        ordered = tuple(sorted(entries, key=lambda entry: int(entry.version)))
        kept = {id(entry.model) for entry in ordered}
        with self._lock:
            before = self._table.get(name, ())
            self._changed |= {id(entry.model) for entry in before} != kept
            for entry in before:
                if entry.model is not None and id(entry.model) not in kept:
                    leaving = Entry(name, entry.version, None, "answers what it has begun", "UNLOADING")
                    self._leaving.append((leaving, weakref.ref(entry.model.batcher)))
            table = {key: value for key, value in self._table.items() if key != name}
            self._table = table | {name: ordered} if ordered else table

    def _tidy(self) -> None:
        """Forget models whose last request is done, and give their memory back; milliseconds, without any lock."""
        with self._lock:
            still = [(entry, model) for entry, model in self._leaving if model() is not None]
            worth = self._changed or len(still) < len(self._leaving)
            self._leaving, self._changed = still, False
        if worth:
            give_back_memory()


def _sentence(error: Exception) -> str:
    """Return an error's text in one line; it may quote names from the file."""
    return clip(" ".join(str(error).split()), MAX_PROBLEM_BYTES)

"""One variable of a MATLAB file as plain Python: structs are dicts, arrays of structs are lists, numbers are arrays.

scipy reads the files that MATLAB writes by default; those of its version 7.3 are HDF5 files, which need h5py.
"""

from __future__ import annotations

import struct
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from analyzers.errors import DataError


def read_matlab(path: Path, variable: str) -> Any:
    """Read one variable; axes are MATLAB's, without those of length 1.

    Raises:
        DataError: there is no such file or variable, the file is damaged, or the library that reads it is missing.
    """
    if not path.is_file():
        raise DataError(f"there is no {path}; expected a MATLAB file with the variable '{variable}'")
    try:
        with path.open("rb") as file:
            is_hdf5 = file.read(19) == b"MATLAB 7.3 MAT-file"
        found = (_read_hdf5 if is_hdf5 else _read_classic)(path, variable)
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be read as a MATLAB file ({str(error)[:120]}); download it again") from None
    if found is None:
        raise DataError(f"{path} lacks the variable '{variable}'; is it another data set's?")
    return found


def listed(structs: Any) -> list[Any]:
    """Return an array of structs as a list: MATLAB files do not tell an array of one from a single struct."""
    if isinstance(structs, dict):
        return [structs]
    return list(structs)


def _read_classic(path: Path, variable: str) -> Any:
    scipy_io = _library("scipy.io", "scipy", path)
    try:
        return scipy_io.loadmat(path, variable_names=[variable], simplify_cells=True).get(variable)
    except scipy_io.matlab.MatReadError as error:
        raise ValueError(str(error)) from None


def _read_hdf5(path: Path, variable: str) -> Any:
    h5py = _library("h5py", "h5py", path)
    with h5py.File(path, "r") as file:
        return _plain(file, file[variable]) if variable in file else None


def _plain(file: Any, node: Any) -> Any:
    """Turn a node of a version 7.3 file into what scipy makes of the same thing in other files."""
    if hasattr(node, "keys"):  # a group is a struct, or an array of structs if each field is an array of references
        if all(_is_references(child) and "MATLAB_class" not in child.attrs for child in node.values()):
            columns = {name: child[()].T.ravel() for name, child in node.items()}
            return [
                {name: _plain(file, file[reference]) for name, reference in zip(columns, references, strict=True)}
                for references in zip(*columns.values(), strict=True)
            ]
        return {name: _plain(file, child) for name, child in node.items()}
    if node.attrs.get("MATLAB_empty", 0):
        return np.empty(0)
    if _is_references(node):
        return [_plain(file, file[reference]) for reference in node[()].T.ravel()]
    values = np.asarray(node[()]).T.squeeze()
    if node.attrs.get("MATLAB_class") == b"char":
        return "".join(map(chr, values.ravel(order="F")))
    return values


def _is_references(node: Any) -> bool:
    return not hasattr(node, "keys") and node.dtype.kind == "O"


def _library(module: str, package: str, path: Path) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise DataError(f"{path} is a MATLAB file, which {package} reads; 'pip install {package}' brings it") from None


# What scipy and h5py raise on damaged files.
_DAMAGE = (OSError, ValueError, TypeError, KeyError, IndexError, RuntimeError, MemoryError, struct.error, zlib.error)

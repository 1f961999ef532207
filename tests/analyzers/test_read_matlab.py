"""Both kinds of MATLAB files give the same plain values, and damaged ones a sentence."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from analyzers.errors import DataError
from analyzers.read_matlab import listed, read_matlab

MAGIC = b"MATLAB 7.3 MAT-file, Platform: GLNXA64"


@pytest.fixture
def structs(tmp_path: Path) -> Path:
    """Return a version 7.3 file with an array of two structs and a single one, as MATLAB lays them out."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "new.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        first = file.create_dataset("#refs#/a", data=np.array([[1.0, 2.0], [3.0, 4.0]]))  # 2 x 2, columns first
        second = file.create_dataset("#refs#/b", data=np.zeros(2, np.uint64))
        second.attrs["MATLAB_empty"] = np.uint8(1)
        array = file.create_group("truth")
        array.attrs["MATLAB_class"] = np.bytes_("struct")
        array.create_dataset("pHW_center", data=[[first.ref], [second.ref]], dtype=h5py.ref_dtype)
        nested = file.create_group("#refs#/c")
        nested.create_group("bndbox").create_dataset("xmin", data=[[7.0]])
        file.create_group("samples").create_dataset("obj", data=[[nested.ref]], dtype=h5py.ref_dtype)
        single = file.create_group("anno")
        single.create_dataset("xmin", data=[[44.0]])
        name = single.create_dataset("name", data=np.array([[ord(letter)] for letter in "fox"], np.uint16))
        name.attrs["MATLAB_class"] = np.bytes_("char")
        cell = single.create_dataset("cell", data=[[first.ref]], dtype=h5py.ref_dtype)
        cell.attrs["MATLAB_class"] = np.bytes_("cell")
    path.write_bytes(MAGIC + path.read_bytes()[len(MAGIC) :])
    return path


def test_an_array_of_structs_in_a_version_7_3_file_is_a_list(structs: Path) -> None:
    first, second = read_matlab(structs, "truth")
    np.testing.assert_array_equal(first["pHW_center"], [[1, 3], [2, 4]])
    assert len(second["pHW_center"]) == 0
    assert [float(sample["obj"]["bndbox"]["xmin"]) for sample in read_matlab(structs, "samples")] == [7]


def test_a_single_struct_in_a_version_7_3_file_is_a_dict(structs: Path) -> None:
    found = read_matlab(structs, "anno")
    assert (float(found["xmin"]), found["name"], len(found["cell"])) == (44, "fox", 1)
    assert listed(found) == [found]


def test_a_missing_variable_is_named(structs: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy.io").savemat(tmp_path / "old.mat", {"x": 1})
    for path in (structs, tmp_path / "old.mat"):
        with pytest.raises(DataError, match="lacks the variable 'other'"):
            read_matlab(path, "other")


@pytest.mark.parametrize("content", [b"", b"no such file" * 99, MAGIC + bytes(900), b"MATLAB 5.0 MAT-file".ljust(200)])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("h5py" if content.startswith(MAGIC) else "scipy.io")
    (tmp_path / "damaged.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged.mat cannot be read as a MATLAB file"):
        read_matlab(tmp_path / "damaged.mat", "samples")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*gone.mat"):
        read_matlab(tmp_path / "gone.mat", "samples")


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    if find_spec("h5py"):
        pytest.skip("h5py is here")
    (tmp_path / "new.mat").write_bytes(MAGIC)
    with pytest.raises(DataError, match="which h5py reads; 'pip install h5py' brings it"):
        read_matlab(tmp_path / "new.mat", "samples")

"""The program that measures on a GPU, in a short form on the CPU: it has one try on a machine that is lent."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.record import Record
from tests.conftest import tiny_plain


def test_every_path_is_measured_compared_and_recorded_with_the_devices_name(
    tmp_path: Path, tiny_model: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, model in (("plain", tiny_plain()), ("explained", tiny_model)):
        (tmp_path / f"tiny-16.{kind}.fp32.onnx.gz").write_bytes(gzip.compress(model))
    index = {f"tiny-16.{kind}.fp32.onnx.gz": 1e6 for kind in gpu.KINDS}
    (tmp_path / gpu.INDEX).write_text(str(index).replace("'", '"'))
    json = tmp_path / "gpu.json"
    arguments = f"--models {tmp_path} --device cpu --minutes 0 --batches 1,3 --peak-tflops fp32=2 --json {json}"
    gpu.main(arguments.split())
    record = Record.read(json)
    agreements = [line for line in record.lines if line["what"] == "agreement"]
    times = [line for line in record.lines if line["what"] == "time"]
    assert [line["path"] for line in agreements] == list(gpu.PATHS)
    assert all(line["logits_off"] == line["peaks_moved"] == 0 for line in agreements)
    assert len(times) == 2 * len(gpu.KINDS) * len(gpu.PATHS)
    for line in times:
        assert line["device"]
        assert float(line["share_of_peak"]) == pytest.approx(float(line["tflops"]) / 2)
        assert float(line["pictures_per_second"]) == pytest.approx(
            1e3 * float(line["batch"]) / float(line["median_ms"])
        )
        if line["file"] == "plain":
            assert line["to_plain_file"] == 1
    assert len(capsys.readouterr().out.splitlines()) == len(record.lines)

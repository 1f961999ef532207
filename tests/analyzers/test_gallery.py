"""The page of galleries: what is on it, that names do no harm, and that a browser shows its pictures."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analyzers.errors import DataError
from analyzers.evaluate import evaluate
from analyzers.gallery import gallery
from analyzers.manifest import Manifest
from analyzers.page import SIDE, inlined
from analyzers.pictures import PartMarks, Pictures
from analyzers.pixels import to_model_input
from analyzers.plain import set_manifest
from analyzers.runtime import open_session
from tests.conftest import NAMES, SIZE, explain_tiny, random_pictures


def marked() -> Pictures:
    pictures = random_pictures(60)
    xy = np.random.default_rng(0).random((60, 2, 2), np.float32)
    box = np.concatenate((xy - 0.1, xy + 0.1), 2).astype(np.float32)
    return replace(pictures, parts=PartMarks(("head", "tail"), xy, box))


@pytest.fixture(scope="module")
def model(tiny_model: bytes) -> bytes:
    return tiny_model


@pytest.fixture(scope="module")
def report(model: bytes) -> dict[str, Any]:
    return evaluate(model, marked())


def pictures_on(page: bytes) -> list[Image.Image]:
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.decode())
    return [Image.open(io.BytesIO(base64.b64decode(source))) for source in sources]


def test_every_filter_is_shown_with_the_pictures_in_which_it_peaks_highest(
    model: bytes, report: dict[str, Any]
) -> None:
    page = gallery(model, marked(), report, per_filter=3).decode()
    test = marked().of_split("test")
    answer = open_session(model).run({"image": to_model_input(test.decoded(SIZE, SIZE))})
    assert sorted(map(int, re.findall(r'id="filter-(\d+)"', page))) == list(range(8))
    for section in page.split('<section class="card"')[1:]:
        number = int(re.search(r'id="filter-(\d+)"', section)[1])
        strength = answer["parts.score"][:, number]
        best = np.argsort(-strength, kind="stable")[:3]
        expected = [f"{NAMES[test.label[row]]} · {strength[row]:.2f}" for row in best if strength[row] > 0]
        assert re.findall(r"<figcaption[^>]*>([^<]+)</figcaption>", section) == expected


def test_the_page_has_the_report_s_figures_and_their_controls(model: bytes, report: dict[str, Any]) -> None:
    page = gallery(model, marked(), report).decode()
    for section in ("parts", "parts_off_centre"):
        for name in ("location_instability", "tracking_ratio"):
            figure = report[section][name]
            assert f"{figure['value']:.3f} ± {figure['standard_error']:.3f}" in page
            for control in ("centre", "best_constant", "random", "perfect"):
                assert f"<td>{figure['controls'][control]:.3f}</td>" in page


def test_filters_come_with_the_best_tracking_ratio_first_and_evenly(model: bytes, report: dict[str, Any]) -> None:
    ratios = [
        float(re.search(r"tracking ratio (\d\.\d+)", section)[1])
        for section in gallery(model, marked(), report).decode().split('<section class="card"')[1:]
    ]
    assert ratios == sorted(ratios)
    page = gallery(model, marked(), report, filters=3).decode()
    assert "3 of 8 filters, one in 3" in page
    assert page.count('<section class="card"') == 3


def test_without_marks_filters_are_ordered_by_purity(model: bytes) -> None:
    pictures = random_pictures(60)
    page = gallery(model, pictures, evaluate(model, pictures)).decode()
    assert "highest class purity first" in page
    assert "tracking ratio" not in page.split("Where each filter fires most")[1]


def test_pictures_are_small_and_whole(model: bytes, report: dict[str, Any]) -> None:
    page = gallery(model, marked(), report)
    pictures = pictures_on(page)
    assert len(pictures) > 8
    assert all(picture.size == (SIDE, SIDE) and picture.load() for picture in pictures)
    assert len(page) < 20_000 + 12_000 * len(pictures)  # noise is the hardest to compress
    wide = np.zeros((10, 40, 3), np.uint8)
    assert pictures_on(f'<img src="{inlined(wide)}">'.encode())[0].size == (SIDE, SIDE // 4)


def test_names_cannot_write_into_the_page(model: bytes, report: dict[str, Any]) -> None:
    page = gallery(model, marked(), report, title="<script>alert(1)</script>").decode()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_model_without_parts_has_no_gallery(report: dict[str, Any]) -> None:
    _, _, explained = explain_tiny()
    described = Manifest.from_metadata({entry.key: entry.value for entry in explained.metadata_props})
    set_manifest(explained, described.model_copy(update={"parts": None}))
    with pytest.raises(DataError, match="the model has no row 'parts'"):
        gallery(explained.SerializeToString(), marked(), report)


@pytest.mark.browser
def test_a_browser_shows_every_picture(model: bytes, report: dict[str, Any], tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium")
    count = "[...document.images].filter(image => image.naturalWidth > 0).length"
    probe = f"<script>onload = () => document.title = {count}</script>"
    page = gallery(model, marked(), report)
    (tmp_path / "page.html").write_bytes(page.replace(b"</body>", probe.encode() + b"</body>"))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", (tmp_path / "page.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert f"<title>{len(pictures_on(page))}</title>" in shown.stdout

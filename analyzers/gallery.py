"""A page of galleries: for each filter the pictures in which it peaks highest, and where, beside a report's figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analyzers import metrics
from analyzers.errors import DataError
from analyzers.geometry import Frame, locate
from analyzers.manifest import Manifest, Parts
from analyzers.metrics import FloatArray, Int64Array, best_landmark, mean_known
from analyzers.page import inlined, render
from analyzers.part_report import METRICS, MIN_PICTURES
from analyzers.part_watch import plane_of
from analyzers.pictures import Pictures
from analyzers.pixels import Float32Array, to_model_input
from analyzers.progress import track
from analyzers.runtime import Session, open_session

FILTERS, PICTURES = 64, 8
CONTROLS = ("centre", "best_constant", "random", "perfect")


@dataclass(frozen=True, slots=True)
class _Peaks:
    """(pictures, filters) cell of each peak and activation there."""

    cell: Int64Array
    strength: Float32Array


def gallery(
    model: bytes,
    pictures: Pictures,
    report: dict[str, Any],
    *,
    title: str = "Where filters look",
    split: str = "test",
    filters: int = FILTERS,
    per_filter: int = PICTURES,
) -> bytes:
    """Return a self-contained HTML page, about 5 kB a picture.

    Args:
        model: bytes of an explained model.
        pictures: labelled pictures, the same that `report` is about.
        report: what `evaluate` returned for them.
        title: of the page.
        split: which of the pictures, as there.
        filters: how many are shown at most, evenly from the one that tracks best to the one that tracks worst.
        per_filter: pictures of each.

    Raises:
        DataError: the model has no `parts`, or the split has no picture.
    """
    session = open_session(model)
    manifest = Manifest.from_metadata(session.metadata)
    if manifest.parts is None:
        raise DataError(
            "the model has no row 'parts', so it says of no filter where it peaks; a gallery needs a model whose"
            " last conv map can be followed back to the picture"
        )
    pictures = pictures.relabelled(manifest.classes).of_split(split)
    peaks = _peaks(session, manifest, manifest.parts, pictures)
    own = np.array(
        manifest.parts.learned_for or metrics.own_category(peaks.strength, pictures.label, len(manifest.classes))
    )
    ratio, instability = _tracking(manifest.parts, peaks, pictures, own, (manifest.input.height, manifest.input.width))
    purity = metrics.class_purity(peaks.strength, pictures.label, len(manifest.classes))
    marked = bool(np.isfinite(ratio).any())
    order = np.argsort(ratio if marked else -purity, kind="stable")  # NaN comes last
    step = max(1, -(-len(order) // max(1, filters)))
    shown = order[::step]
    figures = (("tracking ratio", ratio), ("location instability", instability), ("class purity", purity))
    return render(
        "gallery.html",
        title=title,
        layer=manifest.parts.layer,
        count=manifest.parts.filters,
        kind="an interpretable" if manifest.parts.interpretable else "an ordinary",
        pictures=len(pictures),
        split=split,
        accuracy=f"{report['accuracy']['value']:.1%} ± {report['accuracy']['standard_error']:.1%}",
        tables=[(heading, _table(report[key])) for key, heading in _HEADINGS.items() if key in report],
        controls=CONTROLS,
        shown=f"All {len(shown)} filters" if step == 1 else f"{len(shown)} of {len(order)} filters, one in {step}",
        order="best tracking ratio first" if marked else "highest class purity first",
        per_filter=per_filter,
        filters=[
            {
                "number": int(number),
                "category": manifest.classes[own[number]],
                "figures": [(name, f"{values[number]:.3f}") for name, values in figures if np.isfinite(values[number])],
                "peaks": _pictures_of(manifest, manifest.parts, peaks, pictures, int(number), own, per_filter),
            }
            for number in track(shown, "gallery", len(shown))
        ],
    )


_HEADINGS = {"parts": "Figures", "parts_off_centre": "Figures on crops moved at random"}


def _table(section: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, figure in section.items():
        if figure.get("value") is None:
            continue
        error = figure.get("standard_error")
        controls = figure.get("controls", {})
        rows.append(
            {
                "name": name,
                "lower": name in METRICS and METRICS[name].lower_is_better,
                "value": f"{figure['value']:.3f}" + ("" if error is None else f" ± {error:.3f}"),
                "n": figure.get("n", ""),
                "controls": ["" if controls.get(c) is None else f"{controls[c]:.3f}" for c in CONTROLS],
            }
        )
    return rows


def _peaks(session: Session, manifest: Manifest, section: Parts, pictures: Pictures) -> _Peaks:
    size, step = manifest.input, 32
    cell, strength = [], []
    batches = pictures.batches(size.height, size.width, step)
    for pixels in track(batches, "peaks", -(-len(pictures) // step)):
        answer = session.run_images(manifest, to_model_input(pixels))
        cell.append(answer[section.cell])
        strength.append(answer[section.score])
    return _Peaks(np.concatenate(cell), np.concatenate(strength))


def _tracking(
    section: Parts, peaks: _Peaks, pictures: Pictures, own: Int64Array, size: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    """Return each filter's tracking ratio and location instability on its own class; NaN without marks."""
    ratio, instability = np.full(section.filters, np.nan), np.full(section.filters, np.nan)
    if pictures.parts is None:
        return ratio, instability
    centres = np.concatenate((plane_of(section, size).centres, [[np.nan, np.nan]]))
    height, width = size
    landmark = pictures.parts.xy.astype(np.float64) * (width, height)
    for number in np.unique(own):
        rows, columns = np.flatnonzero(pictures.label == number), np.flatnonzero(own == number)
        strength = peaks.strength[rows][:, columns]
        peak = centres[np.where(strength > 0, peaks.cell[rows][:, columns], -1)]
        table = metrics.tracking_ratio(peak, landmark[rows], minimum=MIN_PICTURES)
        ratio[columns] = best_landmark(table, lower_is_better=True)
        diagonal = float(np.hypot(height, width))
        spread = metrics.location_instability(peak, landmark[rows], diagonal, strength=strength, minimum=MIN_PICTURES)
        instability[columns] = mean_known(spread, axis=1)
    return ratio, instability


def _pictures_of(
    manifest: Manifest, section: Parts, peaks: _Peaks, pictures: Pictures, number: int, own: Int64Array, count: int
) -> list[dict[str, Any]]:
    size = manifest.input
    frame = Frame(1.0, 1.0, size.width, size.height)
    best = np.argsort(-peaks.strength[:, number], kind="stable")[:count]
    best = best[peaks.strength[best, number] > 0]
    result = []
    for row, pixels in zip(best, pictures.take(best).decoded(size.height, size.width), strict=True):
        place = locate(section.grid, int(peaks.cell[row, number]), frame)
        result.append(
            {
                "source": inlined(pixels, ((place.receptive_field, "white"), (place.cell, "gold"))),
                "name": pictures.names[pictures.label[row]],
                "own": bool(pictures.label[row] == own[number]),
                "score": f"{peaks.strength[row, number]:.2f}",
            }
        )
    return result

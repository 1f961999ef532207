"""The Certificate: how alike a smaller copy of a model explains, JSON in its metadata under `pellucid.certificate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from analyzers.documents import read_document
from analyzers.errors import InvalidInputError

CERTIFICATE_KEY = "pellucid.certificate"

Form = Literal["fp16", "int8", "openvino"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Section):
    """One figure over `n` pictures, or over their filters or features; None where there was nothing to take it of."""

    value: float | None
    n: int
    standard_error: float | None = None
    first_percentile: float | None = None


class Bounds(_Section):
    """What figures have to be for a copy to pass."""

    at_least: dict[str, float]
    at_most: dict[str, float]

    def judge(self, figures: Mapping[str, Figure]) -> dict[str, bool]:
        """Return for every required figure whether it holds; one that is not to be had does not count."""
        values = {name: figures[name].value for name in (*self.at_least, *self.at_most) if name in figures}
        high = {name: values[name] for name in self.at_least if name in values}
        low = {name: values[name] for name in self.at_most if name in values}
        held = {name: value is not None and value >= self.at_least[name] for name, value in high.items()}
        return held | {name: value is not None and value <= self.at_most[name] for name, value in low.items()}

    def changed(self, name: str, value: float) -> Bounds:
        """Return the same with another bound of that name.

        Raises:
            InvalidInputError: nothing of that name is required.
        """
        for side in ("at_least", "at_most"):
            bounds: dict[str, float] = getattr(self, side)
            if name in bounds:
                return self.model_copy(update={side: bounds | {name: value}})
        known = ", ".join((*self.at_least, *self.at_most))
        raise InvalidInputError("require", f"names '{name[:40]}'; what can be required is {known}")

    def said(self, name: str) -> str:
        """Return the bound in words, empty where there is none."""
        if name in self.at_least:
            return f"at least {self.at_least[name]:g}"
        return f"at most {self.at_most[name]:g}" if name in self.at_most else ""


BOUNDS = Bounds(
    at_least={"same_class": 0.98, "map_correlation": 0.95, "top_features_kept": 0.97},
    at_most={"completeness_gap": 1e-3},
)
# OpenVINO chooses its precision by itself, so that its ledgers add up less exactly.
ELSEWHERE = Bounds(
    at_least={"same_class": 0.97, "map_correlation": 0.95, "top_features_kept": 0.9},
    at_most={"completeness_gap": 1e-2},
)


class PictureSet(_Section):
    """Which pictures: SHA-256 over them and their labels, and how many."""

    split: str
    pictures: int
    fingerprint: str


class Calibration(_Section):
    """How a copy of eight bits was made."""

    data: PictureSet
    method: str
    keep: tuple[str, ...] = ()
    symmetric: bool = False
    reduced: bool = False


class Certificate(_Section):
    """What `certify` found.

    Attributes:
        schema_version: of this document.
        form: how the copy differs from the model.
        model_sha256: of the file that it was made from.
        copy_sha256: of the file that the copy is; only beside a copy, which cannot hold its own.
        runtime: what ran the copy.
        tools: versions of what made and measured it.
        data: the pictures that both were compared on.
        calibration: of eight bits.
        figures: how alike they are; docs/report.md defines each.
        required: what they had to be.
        passed: of each required figure whether it is.
    """

    schema_version: Literal[2] = Field(alias="schema", default=2)
    form: Form
    model_sha256: str
    copy_sha256: str | None = None
    runtime: str
    tools: dict[str, str]
    data: PictureSet
    calibration: Calibration | None = None
    figures: dict[str, Figure]
    required: Bounds
    passed: dict[str, bool]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Certificate | None:
        """Read the certificate of a model file's metadata; None where it is no copy.

        Raises:
            ModelError: it is damaged, or of a later version.
        """
        text = metadata.get(CERTIFICATE_KEY)
        if text is None:
            return None
        return read_document(cls, text, name="certificate", remedy="make the copy anew")

    def to_json(self, indent: int | None = None) -> str:
        """Return the text that goes into a file; equal certificates give equal text."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=indent)

    @property
    def failed(self) -> list[str]:
        """Names of the figures that miss their bounds."""
        return [name for name, held in self.passed.items() if not held]

    def lines(self) -> list[str]:
        """Return the figures as a table to read."""
        lines = []
        for name, figure in self.figures.items():
            value = "none" if figure.value is None else f"{figure.value:.4g}"
            error = "" if figure.standard_error is None else f" ± {figure.standard_error:.2g}"
            verdict = "holds" if self.passed.get(name) else "FAILS"
            said = f"  {verdict} (required {self.required.said(name)})" if name in self.passed else ""
            lines.append(f"{name:<20} {value + error:>18}  n = {figure.n}{said}")
        return lines

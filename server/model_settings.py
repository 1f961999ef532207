"""What may be set for one model: how it is run, and what of the server's settings it has otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from analyzers.execution import Device, Execution

Positive = Annotated[int, Field(ge=1)]

ALL = "*"
"""The name whose settings hold for every model that does not say otherwise."""


class ModelSettings(Execution):
    """One model's settings; what is left out is the server's."""

    device: Device | None = Field(None, description="where it runs")
    threads: Positive | None = Field(None, description="threads within one run")
    instances: Positive | None = Field(None, description="runs at a time")
    max_batch: Positive | None = Field(None, description="pictures of different requests that may share a run")
    max_delay_ms: Annotated[float, Field(ge=0)] | None = Field(
        None, description="how long pictures may wait for others to share a run with"
    )


def settings_of(models: Mapping[str, ModelSettings], name: str) -> ModelSettings:
    """Return a model's settings: its own, and where it says nothing those of `*`. Tables such as `cuda` stay whole."""
    own, common = models.get(name, ModelSettings()), models.get(ALL, ModelSettings())
    said = {field: getattr(own, field) for field in own.model_fields_set}
    return ModelSettings.model_validate(dict(common) | said)

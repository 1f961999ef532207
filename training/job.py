"""Job: the configuration of a training run, a TOML file plus `--section.key VALUE` from the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from analyzers.check_pictures import Unreadable
from analyzers.errors import PellucidError
from analyzers.manifest import Peak, Rule, Triple
from training.backbones import BACKBONES
from training.network import IMAGENET_MEAN, IMAGENET_STD

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class JobError(PellucidError):
    """A job file or an override is wrong."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Section):
    """Which pictures to learn from."""

    path: Path | None = Field(None, description="pack or folder; the drawn creatures where left out")
    size: Count = Field(64, description="height and width in pixels that pictures are brought to")
    creatures: Count = Field(5000, description="how many creatures to draw; a quarter is the test split")
    unreadable: Unreadable = Field("refuse", description="pictures that cannot be read: refuse to begin, or skip them")
    category: str | None = Field(None, description="learn this class against the rest; all classes where left out")


class Model(_Section):
    """What to learn."""

    backbone: str = Field("small", description=f"one of {', '.join(BACKBONES)}")
    weights: Path | None = Field(
        None, description="the backbone's weights, safetensors or .pth; give the mean and std that it learned with"
    )
    keep_head: bool = Field(False, description="take the final layer from model.weights as well, where it fits")
    filters: Annotated[int, Field(ge=0)] = Field(64, description="filters of the last conv layer; 0 adds none")
    interpretable_layers: tuple[str, ...] = Field(
        (), description="layers of the backbone that are masked as well, by name: layer3,layer4"
    )
    interpretable: bool = Field(True, description="teach these filters parts; false for the ordinary network")
    mask: bool = Field(
        True, description="pool only what lies under a filter's part template; false leaves it to the filter loss alone"
    )
    peak: Peak = Field(
        "argmax", description="what a template is centred on: the highest cell, or centroid, the centre of mass"
    )
    beta: Annotated[float, Field(gt=0)] | Literal["per-filter"] = Field(
        4.0,
        description="steepness of the part templates, of radius side / beta cells; per-filter: after each map's spread",
    )
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in BACKBONES:
            raise ValueError(f"there is no backbone '{name}'; there are {', '.join(BACKBONES)}")
        return name

    @field_validator("interpretable_layers", mode="before")
    @classmethod
    def _listed(cls, names: object) -> object:
        return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names

    @field_validator("interpretable_layers")
    @classmethod
    def _different(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a layer is named twice; name each once")
        return names


class Train(_Section):
    """How to learn."""

    epochs: Annotated[int, Field(ge=0)] = Field(
        12,
        description="passes over the pictures; 0 leaves the network as model.weights or train.start have it",
    )
    batch_size: Count = 64
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-3, description="peak of the one-cycle schedule")
    weight_decay: Annotated[float, Field(ge=0)] = 5e-2
    loss: Literal["softmax", "logistic"] = Field(
        "softmax",
        description="softmax for one class a picture; logistic: yes or no for each, as where pictures have several",
    )
    filter_loss: Literal["plain", "code", "paper", "mi", "gates", "groups"] = "plain"
    filter_weight: Annotated[float, Field(ge=0)] = Field(0.05, description="lambda of the filter loss; 0 for none")
    filter_push: Annotated[float, Field(ge=0)] = Field(
        1.0, description="how much plain and code push a filter down on pictures of other classes, against its own pull"
    )
    filter_schedule: Literal["decay", "constant", "ramp"] = Field(
        "decay",
        description="lambda divided by the number of the epoch as in the paper, kept, or growing linearly to it",
    )
    filter_classes: Literal["response", "balanced"] = Field(
        "response", description="class of a filter: the one it responds to most, or an equal number of filters for each"
    )
    start: Path | None = Field(
        None, description="weights.safetensors of an earlier run of the same network to start from"
    )
    distil: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of staying near the answers that train.start gives as an ordinary network; 0 for none"
    )
    augment: Literal["affine", "crop"] = Field(
        "affine",
        description="affine: flipped, shifted, zoomed, in another light; crop: flipped and shifted by whole pixels,"
        " which leaves small pictures sharp",
    )
    shift: Share = Field(0.08, description="random shift, share of the side")
    zoom: Share = Field(0.1, description="random change of scale")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of activations while learning; bfloat16 pays on processors and GPUs made for it"
    )
    seed: Annotated[int, Field(ge=0)] = 0
    warm_up: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="share of the steps in which the learning rate rises; then it falls along a cosine"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="decay of averaged weights, which are then kept")
    tensorboard: bool = Field(False, description="write scalars and pictures for TensorBoard beside the model")
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads; 0 leaves it to torch")


class Head(_Section):
    """How to decompose the final layer."""

    k1: Count = Field(5, description="features counted per picture")
    k2: Count = Field(5, description="class-specific features per class")
    rule: Rule = Field("contribution", description="what ranks a feature")
    decompose: bool = Field(True, description="keep only the class features and fine-tune; else the full layer stays")
    indices: Path | None = Field(
        None, description="JSON {class number: [feature numbers]} to take instead of finding class features"
    )
    train: Literal["head", "last_block", "all"] = Field("all", description="what is fine-tuned; the rest stands still")
    distil: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of staying near the answers of the full final layer; 0 for none"
    )
    epochs: Count = Field(3, description="passes of fine-tuning")
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4


class Job(_Section):
    """A training run; writes `<output>/<name>/<version>/model.onnx` and `report.json`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, Field(pattern=r"^[0-9]+$")] = "1"
    output: Path = Path("models")
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    head: Head = Head()

    @model_validator(mode="after")
    def _fitting(self) -> Job:
        if self.data.category is not None and self.train.loss == "logistic":
            raise ValueError("data.category has the logistic loss as it is; leave train.loss out")
        if self.model.keep_head and (self.model.weights is None or self.model.filters):
            raise ValueError("model.keep_head needs model.weights, and no filters between them and the final layer")
        if not self.train.epochs and self.train.start is None and not self.model.keep_head:
            raise ValueError("train.epochs is 0, but neither train.start nor model.keep_head brings a whole network")
        if self.train.distil and self.train.start is None:
            raise ValueError("train.distil keeps near the answers of train.start; name the run to start from there")
        if self.train.filter_loss == "gates" and self.model.interpretable_layers:
            raise ValueError(
                "train.filter_loss 'gates' works on the last layer alone; leave model.interpretable_layers out"
            )
        return self

    @property
    def masked(self) -> bool:
        """Whether interpretable layers are masked by part templates."""
        return self.model.interpretable and self.model.mask

    @property
    def filter_weight(self) -> float:
        """Lambda of the filter loss before its schedule; 0 for an ordinary network."""
        return self.train.filter_weight if self.model.interpretable else 0.0

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.output / self.name / self.version


def read_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file and apply `--section.key VALUE` or `--section.key=VALUE` overrides.

    Raises:
        JobError: the file is not there or not TOML, or a key or value is wrong; every one is named.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is not TOML: {error}") from None
    _override(document, list(overrides))
    try:
        return Job.model_validate(document)
    except ValidationError as error:
        wrong = "; ".join(": ".join(filter(None, (_place(p["loc"]), p["msg"]))) for p in error.errors()[:5])
        raise JobError(f"{path}: {wrong}") from None


def _place(location: tuple[int | str, ...]) -> str:
    """Return the key that an error is about, without the kinds of value that were tried."""
    return ".".join(str(part) for part in location if not str(part).startswith(("constrained-", "literal[")))


def _override(document: dict[str, Any], overrides: list[str]) -> None:
    while overrides:
        option = overrides.pop(0)
        if not option.startswith("--"):
            raise JobError(f"unexpected '{option}'; overrides look like --train.epochs 3")
        key, equals, value = option[2:].partition("=")
        if not equals:
            if not overrides:
                raise JobError(f"{option} lacks a value")
            value = overrides.pop(0)
        *sections, last = key.replace("-", "_").split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise JobError(f"{option}: '{section}' is not a section")
        place[last] = value


def describe() -> str:
    """Return every key with its default, for `--help`."""
    lines = ["keys (override any as --section.key VALUE):", "  --output DIR  --name NAME  --version N"]
    for section in ("data", "model", "train", "head"):
        fields = Job.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        for name, field in fields.items():
            about = f"  {field.description}" if field.description else ""
            lines.append(f"  --{section}.{name} (default {field.default}){about}")
    return "\n".join(lines)

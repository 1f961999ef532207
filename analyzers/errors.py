"""What can go wrong in the kernel; each message says what was wrong, what was expected and what to do."""

from __future__ import annotations


class PellucidError(Exception):
    """The root of every error that this project raises on purpose."""


class InvalidInputError(PellucidError):
    """Something that a caller sent does not fit.

    Attributes:
        field: the name of the offending field or option.
    """

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field


class ModelError(PellucidError):
    """A model file cannot be used: missing, truncated, not ONNX, without or with an unknown manifest."""


class ModelRunError(ModelError):
    """ONNX Runtime could not load the model, or its run failed."""


class DataError(PellucidError):
    """Pictures or index files on disk cannot be used."""


class RuntimeNotReadyError(PellucidError):
    """ONNX Runtime is absent, installed twice, or lacks the device or provider that was asked for."""

"""Documents in a model file's metadata: JSON that is read strictly, and refused in one sentence."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from analyzers.errors import ModelError

Document = TypeVar("Document", bound=BaseModel)


def read_document(kind: type[Document], text: str, *, name: str, remedy: str) -> Document:
    """Read a document.

    Args:
        kind: what it must be.
        text: its JSON.
        name: what to call it in an error.
        remedy: what to do about one, as the end of a sentence.

    Raises:
        ModelError: it is damaged, or of a later version; the message says where.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ModelError(f"the {name} is wrong at {place}: {first['msg']}; {remedy}") from None

"""Answers as files: what `pellucid explain --json` and `--jsonl` print and `pellucid verify` replays."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analyzers.errors import DataError
from analyzers.explanation import Explanation

ANSWER_SCHEMA = 1


class VerificationError(DataError):
    """An answer is not what the model says of the picture."""


def record(explanation: Explanation, picture: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return an answer as `pellucid explain --json` writes it: enough to compute it again."""
    return {"schema": ANSWER_SCHEMA, "picture": picture, "request": request, **asdict(explanation)}


def read_answer(path: Path, digest: str) -> dict[str, Any]:
    """Return the answer about the picture of this SHA-256.

    Raises:
        DataError: the file is not such answers, or none is about that picture.
    """
    try:
        answers = _parse(path.read_text(encoding="utf-8"))
        digests = [answer["proof"]["image_sha256"] for answer in answers]
        known = all(answer["schema"] == ANSWER_SCHEMA and answer["request"] is not None for answer in answers)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(
            f"{path} is not an answer; expected what `pellucid explain --json` or `--jsonl` prints"
        ) from None
    if not known:
        raise DataError(f"{path} has answers of another schema; this version reads schema {ANSWER_SCHEMA}")
    if digest not in digests:
        there = ", ".join(str(one)[:12] for one in digests[:5])
        raise VerificationError(f"the picture has SHA-256 {digest[:12]}..., the answer is about {there}...")
    found: dict[str, Any] = answers[digests.index(digest)]
    return found


def _parse(text: str) -> list[dict[str, Any]]:
    """Read one document, or one in each line."""
    try:
        document = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line]
    return document if isinstance(document, list) else [document]

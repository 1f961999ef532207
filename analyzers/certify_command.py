"""`pellucid-analyze certify`: does a smaller copy of a model give the same explanations?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from analyzers import cli
from analyzers.certify import AT_LEAST, AT_MOST, certify
from analyzers.check_pictures import check_pictures
from analyzers.errors import ModelError
from analyzers.files import write_atomically
from analyzers.plain import load_onnx
from analyzers.read_pictures import read_pictures


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command understands."""
    command.add_argument("model", type=Path, metavar="MODEL.onnx", help="explained, float32")
    command.add_argument("--against", choices=("fp16", "int8", "openvino"), required=True, help="which copy")
    command.add_argument("--data", type=Path, required=True, metavar="DIR|PACK")
    cli.add_unreadable(command)
    command.add_argument("--split", default="test", help="which pictures to compare on (default test)")
    command.add_argument("--output", type=Path, metavar="certificate.json", help="default: standard output")
    command.add_argument("--copy", type=Path, metavar="COPY.onnx", help="also write the copy")


def run(options: argparse.Namespace) -> None:
    """Make a smaller copy, compare its answers with the model's, and write the certificate.

    The command fails where the copy does not pass; the certificate is written all the same, the copy is not.
    """
    pictures = check_pictures(read_pictures(options.data), options.unreadable)
    model = load_onnx(cli.read_model(options.model))
    certificate, copy = certify(model, pictures, options.against, split=options.split)
    text = json.dumps(certificate, indent=2) + "\n"
    if options.output is None:
        print(text, end="")
    else:
        write_atomically(options.output, text.encode())
        for name, figure in certificate["figures"].items():
            passed = certificate["passed"].get(name)
            said = "" if passed is None else f"  {'holds' if passed else 'FAILS'} (required {_required(name)})"
            value = "none" if figure["value"] is None else f"{figure['value']:.4g}"
            print(f"{name:<20} {value:>10}  n = {figure['n']}{said}")
    failed = [name for name, passed in certificate["passed"].items() if not passed]
    if failed:
        raise ModelError(f"the {options.against} copy does not explain as the model does: {', '.join(failed)}")
    if options.copy is not None and copy is not None:
        write_atomically(options.copy, copy.SerializeToString(deterministic=True))


def _required(name: str) -> str:
    return f"at least {AT_LEAST[name]}" if name in AT_LEAST else f"at most {AT_MOST[name]}"

"""`pellucid-analyze certify`: does a smaller copy of a model give the same explanations?"""

from __future__ import annotations

import argparse
from hashlib import sha256
from pathlib import Path

from analyzers import cli
from analyzers.certificate import CERTIFICATE_KEY
from analyzers.certify import certify
from analyzers.check_pictures import check_pictures
from analyzers.errors import ModelError
from analyzers.files import write_atomically
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
    certificate, copy = certify(cli.read_model(options.model), pictures, options.against, split=options.split)
    content = None
    if copy is not None:
        copy.metadata_props.add(key=CERTIFICATE_KEY, value=certificate.to_json())
        content = copy.SerializeToString(deterministic=True)
        certificate = certificate.model_copy(update={"copy_sha256": sha256(content).hexdigest()})
    text = certificate.to_json(2) + "\n"
    if options.output is None:
        print(text, end="")
    else:
        write_atomically(options.output, text.encode())
        print("\n".join(certificate.lines()))
    if certificate.failed:
        raise ModelError(
            f"the {options.against} copy does not explain as the model does: {', '.join(certificate.failed)}"
        )
    if options.copy is not None and content is not None:
        write_atomically(options.copy, content)

"""`pellucid-analyze optimise`: a smaller copy of an explained file that is proved to explain alike."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analyzers import cli
from analyzers.certificate import BOUNDS, Bounds
from analyzers.certify import CALIBRATION_PICTURES
from analyzers.check_pictures import check_pictures
from analyzers.eight_bits import METHODS, PLACES, Place, Scheme
from analyzers.errors import InvalidInputError, ModelError
from analyzers.files import write_atomically
from analyzers.optimise import optimise
from analyzers.read_pictures import read_pictures


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command understands."""
    command.add_argument("model", type=Path, metavar="MODEL.onnx", help="explained, float32")
    command.add_argument("--to", choices=("int8", "fp16"), required=True, help="which copy")
    command.add_argument("--data", type=Path, required=True, metavar="DIR|PACK", help="labelled pictures")
    cli.add_unreadable(command)
    command.add_argument("--split", default="test", help="which pictures to compare on (default test)")
    command.add_argument("--output", type=Path, metavar="COPY.onnx", help="default: MODEL.int8.onnx, MODEL.fp16.onnx")
    command.add_argument("--certificate", type=Path, metavar="certificate.json", help="also write the certificate here")
    command.add_argument(
        "--calibrate",
        type=int,
        default=CALIBRATION_PICTURES,
        metavar="N",
        help=f"int8: pictures that ranges are taken from (default {CALIBRATION_PICTURES})",
    )
    command.add_argument("--method", choices=METHODS, default="minmax", help="int8: how (default minmax)")
    command.add_argument("--keep", type=_places, default=(), metavar="first,last", help="int8: convolutions left as is")
    command.add_argument(
        "--symmetric", action="store_true", help="int8: signed activations, for GPUs; slow on x86 processors"
    )
    command.add_argument(
        "--reduce-range", action="store_true", help="int8: weights of 7 bits, for x86 processors without VNNI"
    )
    command.add_argument(
        "--require",
        type=_bound,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another bound for one figure, as same_class=0.99; may be given again",
    )
    command.add_argument("--force", action="store_true", help="write the copy even if it misses a bound")


def run(options: argparse.Namespace) -> None:
    """Make a smaller copy of an explained file, compare their answers, and write it with its certificate.

    The command fails where the copy does not explain as the model does; the figures are printed and the certificate is
    written all the same, the copy is not.
    """
    output: Path = options.output or options.model.with_suffix(f".{options.to}.onnx")
    if output.resolve() == options.model.resolve():
        raise InvalidInputError("output", "is the model itself; name another file")
    bounds = _bounds(options.require)
    pictures = check_pictures(read_pictures(options.data), options.unreadable)
    data = cli.read_model(options.model)
    certificate, copy = optimise(
        data,
        pictures,
        options.to,
        split=options.split,
        scheme=Scheme(options.method, options.keep, symmetric=options.symmetric, reduced=options.reduce_range),
        calibrate=options.calibrate,
        bounds=bounds,
    )
    print("\n".join(certificate.lines()))
    if options.certificate is not None:
        write_atomically(options.certificate, (certificate.to_json(2) + "\n").encode())
    if certificate.failed:
        missed = f"the {options.to} copy does not explain as the model does: {', '.join(certificate.failed)}"
        if not options.force:
            raise ModelError(f"{missed}; it was not written (--force writes it)")
        print(f"warning: {missed}; it was written all the same", file=sys.stderr)
    write_atomically(output, copy)
    print(f"{output}: {len(copy) / 2**20:.1f} MiB, {len(copy) / len(data):.2f} of {options.model.name}")


def _bounds(required: list[tuple[str, float]]) -> Bounds:
    bounds = BOUNDS
    for name, value in required:
        bounds = bounds.changed(name, value)
    return bounds


def _bound(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE, as same_class=0.99") from None


def _places(text: str) -> tuple[Place, ...]:
    names = [name.strip() for name in text.split(",")]
    chosen = tuple(place for place in PLACES if place in names)
    if len(chosen) != len(names):
        raise argparse.ArgumentTypeError(f"'{text}' is not first, last or first,last")
    return chosen

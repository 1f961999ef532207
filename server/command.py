"""`pellucid`: ask a server for explained predictions from the command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from google.protobuf.json_format import MessageToJson

from analyzers import cli
from analyzers.errors import DataError
from analyzers.explanation import Explanation
from analyzers.ledger import render
from analyzers.what_if import Change
from server.answer_file import record
from server.client import EVIDENCE, Client, Health
from server.client_batch import Outcome
from server.command_connection import add_connection, open_client
from server.picture_files import find_pictures

PROGRAM = "pellucid"

Kind = Literal["feature", "part", "node"]


def main(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = _parser().parse_args(arguments)
    return cli.run(PROGRAM, lambda: _run(options), interrupted="every answer that was printed is whole")


def _run(options: argparse.Namespace) -> None:
    try:
        options.run(options)
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # whoever reads, such as `head`, has enough; what is left must not be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    server = argparse.ArgumentParser(add_help=False)
    add_connection(server)
    server.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser("explain", parents=[server], help="predict and explain pictures")
    command.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="JPEG, PNG or WebP file, a folder of them, or a pattern such as 'pictures/**/*.png'",
    )
    command.add_argument("--model", default="", metavar="NAME", help="may be left out where there is only one")
    command.add_argument("--version", default="", help="the highest where left out")
    command.add_argument("--row", action="append", default=[], dest="rows", help="only this row; may be repeated")
    command.add_argument("--classes", type=int, default=0, metavar="N", help="how many classes (default 5)")
    command.add_argument("--reasons", type=int, default=0, metavar="N", help="how many reasons per class (default 10)")
    command.add_argument("--nodes", type=int, default=0, metavar="N", help="of each layer of the graph (default 20)")
    command.add_argument(
        "--min-percentile", type=float, default=0.0, metavar="P", help="of nodes, 0 to 100 (default 0)"
    )
    command.add_argument(
        "--evidence", choices=("float32", "float16"), default="", help="also say where, by cell of the map"
    )
    command.add_argument(
        "--jsonl", action="store_true", help="print JSON, one line for each answer, as soon as it is there"
    )
    command.add_argument("--batch", type=int, default=8, metavar="N", help="pictures in a request (default 8)")
    command.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at a time (default 4)")
    command.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the first picture's explanation")
    command.set_defaults(run=_explain)

    command = commands.add_parser(
        "what-if", parents=[server], help="ask what the answer would be without some features"
    )
    command.add_argument("picture", type=Path, metavar="PICTURE", help="JPEG, PNG or WebP file")
    command.add_argument("--model", default="", metavar="NAME", help="may be left out where there is only one")
    command.add_argument("--version", default="", help="the highest where left out")
    kinds: tuple[tuple[Kind, str], ...] = (("feature", "N"), ("part", "N"), ("node", "LAYER:N"))
    for kind, name in kinds:
        command.add_argument(
            f"--{kind}",
            action="append",
            default=[],
            type=partial(_change, kind),
            dest="changes",
            metavar=f"{name}[=SCALE]",
            help=f"this {kind} counts SCALE times as much (default 0, not at all); may be repeated",
        )
    command.add_argument("--smallest-flip", action="store_true", help="find the smallest set that flips the class")
    command.add_argument("--occlude", action="store_true", help="also paint over the places of what changes")
    command.add_argument("--classes", type=int, default=0, metavar="N", help="how many classes (default 5)")
    command.set_defaults(run=_what_if)

    command = commands.add_parser("verify", help="replay an answer offline", description=_verify.__doc__)
    command.add_argument(
        "answer", type=Path, metavar="ANSWER.json", help="what `pellucid explain --json` or `--jsonl` printed"
    )
    command.add_argument("--model", type=Path, required=True, metavar="MODEL.onnx", help="the file that answered")
    command.add_argument("--image", type=Path, required=True, metavar="PICTURE", help="the picture that was sent")
    command.set_defaults(run=_verify)

    command = commands.add_parser("models", parents=[server], help="list the server's models")
    command.set_defaults(run=_models)

    command = commands.add_parser(
        "health", parents=[server], help="ask whether the server takes calls; exit code 0 only if it does"
    )
    command.add_argument("--service", default="", metavar="NAME", help="which part of it (default all)")
    command.set_defaults(run=_health)
    return parser


def _change(kind: Kind, text: str) -> Change:
    """Parse `N`, `N=SCALE`, `LAYER:N` or `LAYER:N=SCALE`."""
    what, _, scale = text.partition("=")
    layer, colon, number = what.rpartition(":")
    try:
        if bool(colon) != (kind == "node"):
            raise ValueError
        return Change(kind, int(number), float(scale or 0), int(layer or 0))
    except ValueError:
        form = "LAYER:N or LAYER:N=SCALE" if kind == "node" else "N or N=SCALE"
        raise argparse.ArgumentTypeError(f"'{text}' is not {form}") from None


def _what_if(options: argparse.Namespace) -> None:
    with open_client(options) as client:
        answer = client.what_if(
            options.picture,
            *options.changes,
            model=options.model,
            version=options.version,
            smallest_flip=options.smallest_flip,
            occlude=options.occlude,
            top_k_classes=options.classes,
        )
    if options.json:
        print(MessageToJson(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
        return
    print(f"{options.picture.name}")
    lists = [("as it is", answer.before)]
    lists += [("with the changes", answer.after)] if options.changes else []
    if answer.HasField("flip"):
        features = ", ".join(map(str, answer.flip.features))
        lists.append((f"without features {features}, the smallest set that flips it", answer.flip.after))
    for title, predictions in lists:
        print(f"  {title}:")
        for one in predictions:
            print(f"    {one.class_name:<20} {one.probability:6.1%}  logit {one.logit:+.3f}")
    if options.smallest_flip and not answer.HasField("flip"):
        print("  no set of features flips the class: its bias decides")
    if answer.HasField("occlusion"):
        seen = answer.occlusion
        print(
            f"  painting over {len(seen.places)} cells takes {seen.drop:+.3f} from the logit; elsewhere"
            f" {seen.elsewhere_drop:+.3f} ± {seen.elsewhere_error:.3f} ({seen.elsewhere_draws} draws)"
        )


def _verify(options: argparse.Namespace) -> None:
    """Run the model on the picture again, here, and compare every number with the answer's.

    On the runtime and the provider that answered, each number has to be the same to the bit; on others within 1e-3 of
    the largest logit.
    """
    from server.verify import verify_file  # loads the runtime, which asking a server does not need

    verdict = verify_file(options.answer, options.model, options.image)
    if verdict.bound == 0:
        print(f"{options.answer}: verified, every number is the same to the bit")
    else:
        print(f"{options.answer}: verified on another runtime, numbers differ by {verdict.difference:.1e} at most")


def _explain(options: argparse.Namespace) -> None:
    """Print each answer as it comes; what is wrong with a picture goes to stderr, and the others are answered."""
    pictures = find_pictures(options.pictures)
    listed = len(pictures) == len(options.pictures)  # each by its own name; from folders the path says which
    records: list[dict[str, Any]] = []
    first: tuple[Path, Explanation] | None = None
    failed = 0
    with open_client(options) as client:
        for picture, outcome in zip(pictures, _outcomes(client, pictures, options), strict=True):
            if not isinstance(outcome, Explanation):
                if len(pictures) == 1:
                    raise outcome
                print(f"{PROGRAM}: {picture}: {outcome}", file=sys.stderr)
                failed += 1
                continue
            first = first or (picture, outcome)
            if options.jsonl:
                print(json.dumps(record(outcome, str(picture), _request(options))), flush=True)
            elif options.json:
                records.append(record(outcome, str(picture), _request(options)))
            else:
                print(render(outcome, picture.name if listed else str(picture)))
    if options.json and not options.jsonl:
        print(json.dumps(records, indent=2))
    if options.figure is not None and first is not None:
        from analyzers.figure import draw  # matplotlib is needed for figures alone

        draw(first[0].read_bytes(), first[1], options.figure)
    if failed:
        raise DataError(f"{failed} of {len(pictures)} pictures have no answer; the lines above say why")


def _outcomes(client: Client, pictures: list[Path], options: argparse.Namespace) -> Iterator[Outcome]:
    many = len(pictures) > options.batch and not sys.stdout.isatty()  # on a terminal the answers are progress enough
    return client.explain_many(
        pictures,
        batch=options.batch,
        concurrency=options.concurrency,
        on_error="return",
        progress="auto" if many else False,
        model=options.model,
        version=options.version,
        rows=options.rows,
        top_k_classes=options.classes,
        top_k_reasons=options.reasons,
        max_nodes=options.nodes,
        min_percentile=options.min_percentile,
        evidence=options.evidence,
    )


def _request(options: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for, as an answer on file needs it to be computed again."""
    return {
        "rows": options.rows,
        "top_k_classes": options.classes,
        "top_k_reasons": options.reasons,
        "max_nodes": options.nodes,
        "min_percentile": options.min_percentile,
        "evidence": EVIDENCE[options.evidence],
    }


def _models(options: argparse.Namespace) -> None:
    with open_client(options) as client:
        models = client.list_models()
    if options.json:
        fields = ("model", "version", "ready", "problem")
        print(json.dumps([{f: getattr(m, f) for f in fields} | {"rows": list(m.rows)} for m in models], indent=2))
        return
    for model in models:
        state = ", ".join(model.rows) or "plain" if model.ready else f"refused: {model.problem}"
        print(f"{model.model}/{model.version}  {state}")


def _health(options: argparse.Namespace) -> None:
    """Ask by grpc.health.v1, which needs no token and is sent none."""
    with open_client(options, with_token=False) as client:
        health = client.health(options.service)
    print(json.dumps({"status": health.name}) if options.json else health.name)
    if health is not Health.SERVING:
        raise DataError(f"{options.server} says {health.name}; expected SERVING")


if __name__ == "__main__":
    sys.exit(main())

"""`pellucid`: ask a server for explained predictions from the command line."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Literal

from google.protobuf.json_format import MessageToJson

from analyzers import cli
from analyzers.ledger import render
from analyzers.what_if import Change
from server.answer_file import record
from server.client import DEFAULT_TIMEOUT_SECONDS, EVIDENCE, Client

PROGRAM = "pellucid"

Kind = Literal["feature", "part", "node"]


def main(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = _parser().parse_args(arguments)
    return cli.run(PROGRAM, lambda: options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="default 127.0.0.1:50051")
    server.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_SECONDS, metavar="SECONDS")
    server.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser("explain", parents=[server], help="predict and explain pictures")
    command.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="JPEG, PNG or WebP file")
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
    command.add_argument("answer", type=Path, metavar="ANSWER.json", help="what `pellucid explain --json` printed")
    command.add_argument("--model", type=Path, required=True, metavar="MODEL.onnx", help="the file that answered")
    command.add_argument("--image", type=Path, required=True, metavar="PICTURE", help="the picture that was sent")
    command.set_defaults(run=_verify)

    command = commands.add_parser("models", parents=[server], help="list the server's models")
    command.set_defaults(run=_models)
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
    with Client(options.server, timeout_seconds=options.timeout) as client:
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
    with Client(options.server, timeout_seconds=options.timeout) as client:
        explanations = client.explain(
            options.pictures,
            model=options.model,
            version=options.version,
            rows=options.rows,
            top_k_classes=options.classes,
            top_k_reasons=options.reasons,
            max_nodes=options.nodes,
            min_percentile=options.min_percentile,
            evidence=options.evidence,
        )
    if options.json:
        request = {
            "rows": options.rows,
            "top_k_classes": options.classes,
            "top_k_reasons": options.reasons,
            "max_nodes": options.nodes,
            "min_percentile": options.min_percentile,
            "evidence": EVIDENCE[options.evidence],
        }
        answers = zip(options.pictures, explanations, strict=True)
        print(json.dumps([record(e, str(picture), request) for picture, e in answers], indent=2))
    else:
        for picture, explanation in zip(options.pictures, explanations, strict=True):
            print(render(explanation, picture.name))
    if options.figure is not None:
        from analyzers.figure import draw  # matplotlib is needed for figures alone

        draw(options.pictures[0].read_bytes(), explanations[0], options.figure)


def _models(options: argparse.Namespace) -> None:
    with Client(options.server, timeout_seconds=options.timeout) as client:
        models = client.list_models()
    if options.json:
        fields = ("model", "version", "ready", "problem")
        print(json.dumps([{f: getattr(m, f) for f in fields} | {"rows": list(m.rows)} for m in models], indent=2))
        return
    for model in models:
        state = ", ".join(model.rows) or "plain" if model.ready else f"refused: {model.problem}"
        print(f"{model.model}/{model.version}  {state}")


if __name__ == "__main__":
    sys.exit(main())

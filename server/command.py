"""`pellucid`: ask a server for explained predictions from the command line."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from analyzers import cli
from analyzers.ledger import render
from server.client import DEFAULT_TIMEOUT_SECONDS, Client

PROGRAM = "pellucid"


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
    command.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the first picture's explanation")
    command.set_defaults(run=_explain)

    command = commands.add_parser("models", parents=[server], help="list the server's models")
    command.set_defaults(run=_models)
    return parser


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
        )
    if options.json:
        answers = zip(options.pictures, explanations, strict=True)
        print(json.dumps([{"picture": str(picture), **asdict(e)} for picture, e in answers], indent=2))
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

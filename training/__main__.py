"""`pellucid-train`: learn interpretable classifiers and export them to explained ONNX files."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from analyzers import cli
from analyzers.attach import Selection, attach
from analyzers.baseline_command import record_baseline
from analyzers.check_pictures import refuse_empty_classes
from analyzers.errors import DataError
from analyzers.evaluate import evaluate
from analyzers.files import write_atomically
from analyzers.gallery import gallery
from analyzers.manifest import Provenance
from analyzers.pictures import Pictures
from analyzers.pixels import to_model_input
from analyzers.prove import prove
from analyzers.read_pictures import read_pictures
from analyzers.read_splits import refuse_shared
from training import checkpoint, graph_command
from training.backbones import BACKBONES, load_backbone, split_checkpoint
from training.creatures import creatures
from training.data import Batches, load
from training.export import compare, export, reported_layer
from training.job import Job, JobError, describe, read_job
from training.loop import History, learn
from training.network import IMAGENET_MEAN, IMAGENET_STD, Network
from training.ranks import Ranks, joined
from training.tasks import activation, label_figures, posed
from training.watch import watching
from training.weights import read_weights

log = logging.getLogger("pellucid.training")

PROGRAM = "pellucid-train"
PROOF_PICTURES = 32


def main(arguments: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.run is not _run:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    options.overrides = rest
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pellucid").setLevel(logging.INFO)  # not the exporters' own chatter
    going_on = "the same command with --resume goes on after the last whole epoch"
    told = {_run: {"interrupted": going_on}, graph_command.run: {"interrupted": graph_command.GOING_ON}}
    return cli.run(PROGRAM, lambda: options.run(options), **told.get(options.run, {}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "run",
        help="learn, decompose, export and attach as a job file says",
        description=_run.__doc__,
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("job", type=Path, metavar="JOB.toml")
    command.add_argument("--resume", action="store_true", help="go on where an interrupted run of this job stopped")
    command.add_argument("--html", action="store_true", help="also write report.html with galleries of filters")
    command.set_defaults(run=_run)

    command = commands.add_parser(
        "graph", help="learn an explanatory graph of any ONNX network", description=graph_command.run.__doc__
    )
    graph_command.add_arguments(command)
    command.set_defaults(run=graph_command.run)

    command = commands.add_parser(
        "export", help="export a checkpoint as a plain ONNX file", description=_export.__doc__
    )
    command.add_argument("--backbone", required=True, choices=sorted(BACKBONES))
    command.add_argument(
        "--weights", type=Path, required=True, metavar="FILE", help="safetensors, or a weights-only .pth"
    )
    command.add_argument("--data", type=Path, metavar="PACK", help="takes the class names and the size from here")
    command.add_argument("--names", type=Path, metavar="FILE", help="class names, one a line")
    command.add_argument("--size", type=int, help="height and width in pixels (default: the first picture's)")
    command.add_argument("--mean", type=cli.triple, default=IMAGENET_MEAN, metavar="R,G,B", help="default: ImageNet's")
    command.add_argument("--std", type=cli.triple, default=IMAGENET_STD, metavar="R,G,B", help="default: ImageNet's")
    command.add_argument("--output", type=Path, required=True, metavar="plain.onnx")
    command.set_defaults(run=_export)

    command = commands.add_parser("creatures", help="draw creatures into a pack", description=_creatures.__doc__)
    command.add_argument("--count", type=int, default=1000)
    command.add_argument("--size", type=int, default=64, help="height and width in pixels (default 64)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--without-parts", action="store_true", help="also draw each without each of its parts, as truth for evaluate"
    )
    command.add_argument("--output", type=Path, required=True, metavar="creatures.npz")
    command.set_defaults(run=_creatures)
    return parser


def _run(options: argparse.Namespace) -> None:
    """Learn an interpretable CNN, decompose its final layer, export, explain, prove and measure it."""
    with joined() as ranks:
        run = _learned(options, ranks)
    if ranks.first:  # the others have done their part
        _write(run, options, ranks)


@dataclass(frozen=True, slots=True)
class _Run:
    """What was learned, and from what."""

    job: Job
    pictures: Pictures
    tested: Batches
    network: Network
    selection: Selection
    history: History


def _learned(options: argparse.Namespace, ranks: Ranks) -> _Run:
    """Learn as the job says."""
    if not ranks.first:
        logging.getLogger("pellucid").setLevel(logging.WARNING)
    if ranks.count > 1:
        log.info("%d processes share this run", ranks.count)
    job = read_job(options.job, options.overrides)
    pictures = posed(load(job.data, job.train.seed), job)
    train, test = pictures.of_split("train"), pictures.of_split("test")
    _refuse_empty_classes(train)
    size = job.data.size
    tested = Batches(test, size)
    learned_from = Batches(train, size)
    refuse_shared(train, test, learned_from.pixels.numpy(), tested.pixels.numpy())
    with watching(job, tested) if ranks.first else nullcontext() as watch:
        network, selection, history = learn(
            job, learned_from, tested, len(pictures.names), resume=options.resume, watch=watch, ranks=ranks
        )
    return _Run(job, pictures, tested, network, selection, history)


def _write(run: _Run, options: argparse.Namespace, ranks: Ranks) -> None:
    """Export what was learned, explain, prove and measure it, and write it down."""
    job, network, pictures, size = run.job, run.network, run.pictures, run.job.data.size
    train = pictures.of_split("train")
    plain = export(network, pictures.names, size, activation(job))
    images = _proof_pictures(pictures.of_split("test"), size)
    torch_gap = compare(network, plain, images)
    layer = reported_layer(network, job.model.interpretable)
    described = "drawn creatures" if job.data.path is None else job.data.path.name
    explained = attach(
        plain,
        run.selection,
        layer=layer,
        provenance=Provenance(
            producer=plain.manifest.provenance.producer,
            data=f"{described}, train",
            data_fingerprint=train.fingerprint(),
            pictures=len(train),
        ),
    )
    proof = prove(plain, explained, layer, images)
    record_baseline(explained, train)
    model = explained.SerializeToString(deterministic=True)
    report = evaluate(model, pictures)
    report["proof"] = {"logits_gap_torch": torch_gap, "completeness_gap": proof.completeness_gap}
    if (figures := label_figures(network, run.tested, job)) is not None:
        report["labels"] = figures
    report["training"] = _training_report(job, run.history, ranks)
    write_atomically(job.folder / "weights.safetensors", save(network.state_dict()))
    write_atomically(job.folder / "model.onnx", model)
    if options.html:
        title = f"{job.name}: where filters look"
        write_atomically(job.folder / "report.html", gallery(model, pictures, report, title=title))
    write_atomically(job.folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    (job.folder / checkpoint.FILE).unlink(missing_ok=True)
    print(
        f"{job.folder / 'model.onnx'}: test accuracy {report['accuracy']['value']:.4f}"
        f" (n = {report['accuracy']['n']}), ledgers add up within {proof.completeness_gap:.1e},"
        f" learned in {run.history.seconds:.0f} s"
    )


def _training_report(job: Job, history: History, ranks: Ranks) -> dict[str, Any]:
    return {
        "job": json.loads(job.model_dump_json(exclude={"output": True, "data": {"path"}})),
        "epochs": history.epochs,
        "seconds": round(history.seconds, 1),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": ranks.count,
    }


def _refuse_empty_classes(train: Pictures) -> None:
    """Raise if a class has no picture to learn from."""
    label = train.label if train.labels is None else np.nonzero(train.labels)[1]
    refuse_empty_classes(train.names, label)


def _proof_pictures(pictures: Pictures, size: int) -> np.ndarray:
    """Return real pictures and random ones."""
    real = pictures.take(np.arange(min(len(pictures), PROOF_PICTURES))).decoded(size, size)
    random = np.random.default_rng(0).random((4, 3, size, size), np.float32)
    return np.concatenate([to_model_input(real), random])


def _export(options: argparse.Namespace) -> None:
    """Load a checkpoint into one of our backbones and export it as a plain ONNX classifier."""
    if options.names is None and options.data is None:
        raise JobError("the class names are missing; give --data PACK or --names FILE")
    pictures = None if options.data is None else read_pictures(options.data)
    names = cli.read_names(options.names) if options.names or pictures is None else pictures.names
    size = options.size or _picture_size(pictures)
    backbone, head = split_checkpoint(read_weights(options.weights))
    network = Network(BACKBONES[options.backbone](), len(names), size=size, mean=options.mean, std=options.std)
    try:
        if head and "weight" not in head:
            raise ValueError(
                f"{len(head) // 2} fully connected layers follow its conv layers, and only a mean and one linear layer"
                " can be explained; train on this backbone instead"
            )
        if set(head) != {"weight", "bias"} or len(head["weight"]) != len(names):
            found = list(head["weight"].shape) if "weight" in head else "none"
            raise ValueError(f"the final layer's weight has shape {found}, expected {len(names)} classes")
        load_backbone(network.backbone, backbone)
        network.head.load_state_dict(head, strict=False)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{options.weights}: {str(error).splitlines()[0]}") from None
    plain = export(network, names, size)
    gap = compare(network, plain, np.random.default_rng(0).random((4, 3, size, size), np.float32))
    write_atomically(options.output, plain.model.SerializeToString(deterministic=True))
    print(f"{options.output}: {options.backbone}, {len(names)} classes, torch and ONNX Runtime agree within {gap:.1e}")


def _picture_size(pictures: Pictures | None) -> int:
    if pictures is None:
        raise JobError("the picture size is missing; give --size or --data PACK")
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(pictures.encoded[0])).width


def _creatures(options: argparse.Namespace) -> None:
    """Draw creatures and write them as a pack with part marks."""
    drawn = creatures(options.count, seed=options.seed, size=options.size, without=options.without_parts)
    drawn.save(options.output)
    print(f"{options.output}: {len(drawn)} pictures of {len(drawn.names)} species")


if __name__ == "__main__":
    sys.exit(main())

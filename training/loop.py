"""Learn a classifier: the interpretable CNN with its filter loss, then the decomposed final layer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from analyzers.attach import Selection
from analyzers.progress import track
from training import checkpoint
from training.data import Batches
from training.filter_losses import FILTER_LOSSES, FilterState
from training.find_features import class_features
from training.job import Job
from training.network import Network
from training.ranks import ALONE, Ranks
from training.shared_norm import share_norms
from training.start import TrainingError, begin, build, build_teacher
from training.tasks import accuracy, answers, classification_loss, distillation_loss, member
from training.whole_batch import WithAllMaps, whole

log = logging.getLogger("pellucid.training")

_CHOICES = ("head.mask", "state.category")  # buffers that say yes or no, or which class

Watcher = Callable[[dict[str, float], Network], None]


@dataclass(slots=True)
class History:
    """What happened, epoch by epoch.

    Attributes:
        epochs: one record an epoch.
        seconds: time that learning took.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Some epochs under one schedule; `first` is how many went before, `learns` what is changed by them."""

    title: str
    first: int
    epochs: int
    learning_rate: float
    learns: Literal["head", "last_block", "all"] = "all"


def learn(
    job: Job,
    train: Batches,
    test: Batches,
    classes: int,
    *,
    resume: bool = False,
    watch: Watcher | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Network, Selection, History]:
    """Train the network, find its class features and, if the job says so, decompose its final layer.

    Args:
        job: the configuration.
        train: what to learn from.
        test: what the accuracy of each epoch is measured on.
        classes: how many there are.
        resume: go on where an interrupted run of the same job stopped.
        watch: called after every epoch with its record and the network, in the first process.
        ranks: the processes that share the work; each of them returns the same.

    Raises:
        TrainingError: learning cannot begin, or the loss is not finite; the last epoch's checkpoint is kept.
        CheckpointError: there is one, but not of this job.
    """
    if job.train.threads:
        torch.set_num_threads(job.train.threads)
    torch.manual_seed(job.train.seed)
    goes_on = ranks.told(resume and (job.folder / checkpoint.FILE).exists())
    learner = Learner(job, build(job, classes, pretrained=not goes_on), train, test, watch, ranks)
    if not (goes_on and learner.restore()):
        begin(learner.network, job, train)
    learner.fit(Stage("learning", 0, job.train.epochs, job.train.learning_rate))
    network = learner.network
    selection = learner.selection or class_features(network, job, train, ranks)
    if job.head.decompose:
        if learner.selection is None and job.head.distil:
            learner.full = torch.from_numpy(answers(network, train, job.train.batch_size, ranks))
        learner.selection = selection
        network.head.decompose(selection.sets)
        learner.fit(Stage("decomposing", job.train.epochs, job.head.epochs, job.head.learning_rate, job.head.train))
    learner.use_average()
    network = _laid_out(network.cpu(), torch.contiguous_format)
    return network, selection, learner.history


class Learner:
    """The network and whatever else a checkpoint has to hold."""

    def __init__(
        self, job: Job, network: Network, train: Batches, test: Batches, watch: Watcher | None, ranks: Ranks
    ) -> None:
        self.job, self.train, self.test, self.watch, self.ranks = job, train, test, watch, ranks
        self.accelerator = Accelerator(mixed_precision="bf16" if job.train.precision == "bfloat16" else "no")
        if ranks.count > 1:
            share_norms(network, self.accelerator.device)
        # Channels last is a third faster on processors and what GPUs like best.
        self.network = _laid_out(network.to(self.accelerator.device), torch.channels_last)
        self.generator = torch.Generator().manual_seed(job.train.seed)
        self.history = History()
        self.selection: Selection | None = None
        self.average: AveragedModel | None = None
        if job.train.ema:
            self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(job.train.ema), use_buffers=True)
        self.taught: Tensor | None = None
        self.full: Tensor | None = None  # answers of the full final layer, once it is decomposed
        self._restored: dict[str, Any] = {}

    @property
    def _rule(self) -> str:
        return self.job.head.rule if self.job.head.indices is None else "given"

    @property
    def checkpoint(self) -> Path:
        """Where the run's checkpoint lies; removed when its model is written."""
        return self.job.folder / checkpoint.FILE

    def restore(self) -> bool:
        """Load the checkpoint, if there is one."""
        state = self.ranks.told(checkpoint.load(self.checkpoint, self.job) if self.ranks.first else None)
        if state is None:
            return False
        self.network.load_state_dict(state["network"])
        self.generator.set_state(state["generator"])
        self.history = History(state["epochs"], state["seconds"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if state["sets"] is not None:
            self.selection = Selection(state["sets"].numpy(), state["k1"], self._rule)
            self.full = state["full"]
        self._restored = state
        log.info("going on after epoch %d", len(self.history.epochs))
        return True

    def fit(self, stage: Stage) -> None:
        """Run the stage's epochs, those that are still to be run, with AdamW under a one-cycle schedule."""
        done = len(self.history.epochs) - stage.first
        if done >= stage.epochs:
            return
        self._ask_teacher()
        train, steps = self.job.train, self.train.steps(self.job.train.batch_size)
        still = _standing_still(self.network, stage.learns)
        for parameter in self.network.parameters():
            parameter.requires_grad_(True)
        _prepare(self.network, self.job, self.train)
        for module in still:
            module.requires_grad_(False)
        moving = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(moving, stage.learning_rate, weight_decay=train.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, stage.learning_rate, total_steps=stage.epochs * steps, pct_start=train.warm_up
        )
        if done > 0:
            optimiser.load_state_dict(self._restored["optimiser"])
            schedule.load_state_dict(self._restored["schedule"])
        self._share_out_filters()
        forward = self._forward()
        for number in range(stage.first + max(done, 0) + 1, stage.first + stage.epochs + 1):
            began = time.monotonic()
            record = self._epoch(number, stage, forward, optimiser, schedule, still)
            self.history.epochs.append(record)
            self.history.seconds += time.monotonic() - began
            log.info(
                "%s, epoch %d: loss %.3f, test accuracy %.3f", stage.title, number, record["loss"], record["accuracy"]
            )
            self._share_out_filters()
            self._save(optimiser, schedule)
            if self.watch is not None and self.ranks.first:
                self.watch(record, self.network)

    def _ask_teacher(self) -> None:
        """Take down the answers of the network that learning started from; once, on the pictures as they are."""
        start = self.job.train.start
        if start is not None and self.job.train.distil and self.taught is None:
            teacher = build_teacher(self.job, self.network.head.out_features, start).to(self.accelerator.device)
            self.taught = torch.from_numpy(answers(teacher, self.train, self.job.train.batch_size, self.ranks))

    def _share_out_filters(self) -> None:
        """Hold filters to classes, an equal number to each, once something is known of them."""
        if self.job.train.filter_classes != "balanced":
            return
        for state in self.network.states:
            if state.response.any() and (state.category < 0).any():
                state.share_out()

    def use_average(self) -> None:
        """Put the averaged weights, where they are kept, into the network; choices are not averaged."""
        if self.average is None:
            return
        chosen = {name: value for name, value in self.network.state_dict().items() if name.endswith(_CHOICES)}
        self.network.load_state_dict(self.average.module.state_dict() | chosen)

    def _forward(self) -> nn.Module:
        """Return what gives logits and maps; with several processes, torch's wrapper that averages gradients."""
        forward = WithAllMaps(self.network)
        if self.ranks.count == 1:
            return forward
        device = self.accelerator.device
        # Buffers come from numbers that all processes have, so they stay alike.
        return DistributedDataParallel(
            forward, device_ids=None if device.type == "cpu" else [device.index], forward_sync_buffers=False
        )

    def _epoch(
        self,
        number: int,
        stage: Stage,
        forward: nn.Module,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.OneCycleLR,
        still: list[nn.Module],
    ) -> dict[str, float]:
        network, accelerator = self.network.train(), self.accelerator
        for module in still:
            module.eval()  # batch normalisation keeps its statistics, too
        steps, weight = self.train.steps(self.job.train.batch_size), filter_weight(self.job, number)
        total, filter_total = 0.0, 0.0
        shuffled = self.train.shuffled(self.job.train, self.generator, self.ranks)
        bar = track(shuffled, f"{stage.title}, epoch {number}", steps, shown=self.ranks.first)
        for step, (images, label, rows) in enumerate(bar):
            images = images.to(accelerator.device, memory_format=torch.channels_last)
            label = label.to(accelerator.device)
            with accelerator.autocast():
                logits, maps = forward(images)
            logits = whole(logits, self.ranks, len(label))
            maps = [(state, whole(features, self.ranks, len(label))) for state, features in maps]
            loss = classification_loss(logits.float(), label, self.job.train.loss)
            filter_loss = _filter_loss(maps, self.job, logits.float(), label)
            combined = loss + weight * filter_loss
            if self.taught is not None:
                taught = self.taught[rows].to(accelerator.device)
                combined = combined + self.job.train.distil * distillation_loss(
                    logits.float(), taught, self.job.train.loss
                )
            if self.full is not None:
                full = self.full[rows].to(accelerator.device)
                combined = combined + self.job.head.distil * distillation_loss(
                    logits.float(), full, self.job.train.loss
                )
            if not math.isfinite(combined.item()):
                kept = "" if number == 1 else f" the checkpoint of epoch {number - 1} is kept;"
                raise TrainingError(
                    f"the loss is {combined.item()} at step {step + 1} of epoch {number};{kept}"
                    " lower train.learning_rate or train.filter_weight"
                )
            optimiser.zero_grad(set_to_none=True)
            accelerator.backward(combined)
            optimiser.step()
            schedule.step()
            for state in network.states:
                state.normalise_gates()
            if self.average is not None:
                self.average.update_parameters(network)
            total += loss.item()
            filter_total += filter_loss.item()
        return {
            "epoch": number,
            "loss": total / steps,
            "filter_loss": filter_total / steps,
            "accuracy": accuracy(network, self.test, self.job.train.batch_size, self.ranks),
        }

    def _save(self, optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.OneCycleLR) -> None:
        if not self.ranks.first:
            return
        state = {
            "network": self.network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "generator": self.generator.get_state(),
            "average": None if self.average is None else self.average.state_dict(),
            "epochs": self.history.epochs,
            "seconds": self.history.seconds,
            "sets": None if self.selection is None else torch.from_numpy(self.selection.sets),
            "k1": None if self.selection is None else self.selection.k1,
            "full": self.full,
        }
        checkpoint.save(self.checkpoint, self.job, state)


def _standing_still(network: Network, learns: Literal["head", "last_block", "all"]) -> list[nn.Module]:
    """Return the modules that do not learn. The last block is the last part of the backbone that has weights."""
    if learns == "all":
        return []
    if learns == "head":
        return [module for name, module in network.named_children() if name != "head"]
    before: list[nn.Module] = []
    place: nn.Module = network.backbone
    while True:
        parts = [module for module in place.children() if any(True for _ in module.parameters())]
        before += parts[:-1]
        if not parts or not isinstance(parts[-1], nn.Sequential):
            return before
        place = parts[-1]


def _laid_out(network: Network, memory_format: torch.memory_format) -> Network:
    return network.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return] # torch's stub lacks it


def _prepare(network: Network, job: Job, train: Batches) -> None:
    """Tell the filter losses the class shares and, where gates are learned, how to classify gated maps."""
    share = member(train.label, network.head.out_features).double().mean(0)
    for state in network.states:
        state.class_share.copy_(share)
        state.push = job.train.filter_push
        state.gate.requires_grad_(job.train.filter_loss == "gates")
        state.classify = lambda maps: network.head(network.pooled(maps))


def filter_weight(job: Job, epoch: int) -> float:
    """Return lambda of the filter loss in an epoch; the paper's is lambda_0 / t (section 3)."""
    factor = {"decay": 1 / epoch, "constant": 1.0, "ramp": min(1.0, epoch / max(1, job.train.epochs))}
    return job.filter_weight * factor[job.train.filter_schedule]


def _filter_loss(maps: list[tuple[FilterState, Tensor]], job: Job, logits: Tensor, label: Tensor) -> Tensor:
    """Return the sum over interpretable layers, and keep their running figures."""
    total = logits.new_zeros(())
    for state, features in maps:
        state.observe(features.detach().float(), label)
        if job.filter_weight:
            total = total + FILTER_LOSSES[job.train.filter_loss](features.float(), logits, label, state)[0]
    return total

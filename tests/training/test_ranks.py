"""Several processes against one: the same numbers, files by one of them, one sentence when something goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, random_pictures, tiny_plain
from tests.training import shared_run
from training import checkpoint
from training.loop import learn
from training.ranks import ALONE, Ranks

WAIT_SECONDS = 300
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
ACCELERATE = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--rdzv_backend", "c10d", "--main_process_port", "0", "-m"),
)
# Without this, gloo looks for the machine's address by its name, which not every machine has.
ALONG = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def start(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | ALONG, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )


def worst(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Return the largest relative difference of loss and filter loss over the epochs."""
    assert len(one) == len(other) > 0
    pairs = [(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in ("loss", "filter_loss")]
    return max(abs(a - b) / abs(a) for a, b in pairs)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made."""
    folder = tmp_path_factory.mktemp("shared")
    run = start(*TORCHRUN, "tests.training.shared_run", "everything", str(folder))
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process made."""
    folder = tmp_path_factory.mktemp("alone")
    shared_run.curve(folder, ALONE)
    return folder


def test_two_processes_learn_what_one_does_from_batches_they_share_unevenly(shared: Path, alone: Path) -> None:
    """Seven epochs of 3 steps, the last of them one picture, then one with a decomposed layer."""
    one, two = (torch.load(folder / "learned.pt") for folder in (alone, shared))
    gap = worst(one["epochs"], two["epochs"])
    print(f"worst relative difference of losses over {3 * len(one['epochs'])} steps: {gap:.1e}")
    assert gap < 1e-4
    assert one["sets"] == two["sets"]
    for name, tensor in one["network"].items():
        torch.testing.assert_close(two["network"][name], tensor, rtol=1e-3, atol=2e-4, msg=name)


def test_the_first_process_alone_writes(shared: Path) -> None:
    assert (shared / "0" / "creatures" / "1" / checkpoint.FILE).is_file()
    assert not (shared / "1").exists()
    assert not list((shared / "blocks").glob("process*"))


def test_an_explanatory_graph_of_shared_filters_and_pictures_has_the_same_bytes(shared: Path, tmp_path: Path) -> None:
    shared_run.graph(tmp_path, ALONE)
    assert (shared / "graph.npz").read_bytes() == (tmp_path / "graph.npz").read_bytes()
    blocks = {path.name: path.read_bytes() for path in (tmp_path / "blocks").glob("graph*.npz")}
    assert blocks == {path.name: path.read_bytes() for path in (shared / "blocks").glob("graph*.npz")}


def test_a_killed_process_ends_the_run_in_one_sentence_and_one_process_goes_on(tmp_path: Path) -> None:
    run = start(*TORCHRUN, "tests.training.shared_run", "killed", str(tmp_path))
    assert run.returncode != 0
    assert run.stderr.count("shared-run: error: another process of this run is gone") == 1
    folder = tmp_path / "creatures" / "1"
    assert [path.name for path in folder.iterdir()] == [checkpoint.FILE]
    _, _, history = learn(shared_run.job(tmp_path), *shared_run.splits(), 8, resume=True)
    assert [record["epoch"] for record in history.epochs] == list(range(1, 9))


def test_an_incomplete_environment_is_one_sentence(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "training", "run", str(ROOT / "examples" / "creatures.toml"), f"--output={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert run.returncode == 1
    (line,) = (line for line in run.stderr.splitlines() if line.startswith("pellucid-train: error:"))
    assert "cannot meet" in line
    assert "MASTER_ADDR" in line
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("items", [0, 1, 2, 3, 16, 33])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_all_items_in_order_and_nearly_equal(items: int, count: int) -> None:
    shares = [np.arange(items)[Ranks(number, count).share(items)] for number in range(count)]
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("what", ["variants", "bfloat16"])
def test_it_holds_for_every_filter_loss_and_in_bfloat16(tmp_path: Path, what: str) -> None:
    """Each in processes of its own: accelerate's choice of precision is for good.

    What is rounded more coarsely drifts more; so does mutual information, in one process too when the pictures of a
    batch are added up in another order.
    """
    bounds = {"mi": 1e-2, "bfloat16": 0.1}
    for name, launcher in (("one", (sys.executable, "-m")), ("two", TORCHRUN)):
        run = start(*launcher, "tests.training.shared_run", what, str(tmp_path / name))
        assert run.returncode == 0, run.stderr[-3000:]
    gaps = {}
    for path in sorted((tmp_path / "one").glob("*/learned.pt")):
        one, two = (torch.load(tmp_path / name / path.parent.name / path.name) for name in ("one", "two"))
        gaps[path.parent.name] = worst(one["epochs"], two["epochs"])
    print("worst relative differences:", {name: f"{gap:.1e}" for name, gap in gaps.items()})
    assert gaps
    assert not {name: gap for name, gap in gaps.items() if gap >= bounds.get(name, 1e-4)}


def whole_job(folder: Path) -> list[str]:
    few = ["--data.creatures=44", *shared_run.OPTIONS, "--train.epochs=2", f"--output={folder}"]
    return ["training", "run", str(ROOT / "examples" / "creatures.toml"), *few]


@pytest.mark.slow
def test_accelerate_launches_the_same_job_file(tmp_path: Path) -> None:
    run = start(*ACCELERATE, *whole_job(tmp_path / "two"))
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("model.onnx: test accuracy") == 1
    assert run.stderr.count("learning, epoch 1:") == 1
    single = start(sys.executable, "-m", *whole_job(tmp_path / "one"))
    assert single.returncode == 0, single.stderr[-3000:]
    names = [sorted(path.name for path in (tmp_path / run / "creatures" / "1").iterdir()) for run in ("one", "two")]
    assert names[0] == names[1] == ["model.onnx", "report.json", "weights.safetensors"]
    assert run.stdout.split()[3:5] == single.stdout.split()[3:5]  # the accuracy


@pytest.mark.slow
def test_the_graph_command_writes_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(tiny_plain())
    random_pictures(90).save(tmp_path / "pictures.npz")
    command = ["training", "graph", str(tmp_path / "net.onnx"), "--data", str(tmp_path / "pictures.npz")]
    for name, launcher in (("one", (sys.executable, "-m")), ("two", TORCHRUN)):
        run = start(*launcher, *command, "--output", str(tmp_path / f"{name}.npz"))
        assert run.returncode == 0, run.stderr[-3000:]
        assert run.stdout.count("learned from 60 pictures") == 1
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert not list(tmp_path.glob(".*.blocks"))


@pytest.mark.slow
def test_a_wrong_job_is_one_sentence_not_one_a_process(tmp_path: Path) -> None:
    run = start(*TORCHRUN, *whole_job(tmp_path), "--train.epoch=1")
    assert run.returncode != 0
    assert run.stderr.count("pellucid-train: error:") == 1
    assert run.stderr.count("train.epoch") == 1


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_the_run_goes_on_in_another_number(tmp_path: Path) -> None:
    command = [*TORCHRUN, *whole_job(tmp_path), "--train.epochs=500"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | ALONG, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    folder, end = tmp_path / "creatures" / "1", time.monotonic() + WAIT_SECONDS
    while not (folder / checkpoint.FILE).exists() and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT_SECONDS)
    assert said.count("pellucid-train: interrupted; the same command with --resume goes on") == 1
    assert [path.name for path in folder.iterdir()] == [checkpoint.FILE]
    done = len(torch.load(folder / checkpoint.FILE)["epochs"])
    assert done < 500

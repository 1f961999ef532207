"""What README and docs promise is there: commands parse, options exist, links lead somewhere, the snippet runs."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from analyzers import __main__ as analyze
from server import command as ask
from server.settings import Settings
from tests.conftest import ROOT, png, random_pictures
from training import __main__ as train

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {"pellucid": ask, "pellucid-analyze": analyze, "pellucid-train": train}


def blocks(language: str, text: str = README) -> list[str]:
    """Return the code blocks of a language, the README's if nothing else is said."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line.removeprefix(".venv/bin/") for block in blocks("") for line in block.splitlines()]
    return [line for line in lines if line.startswith("pellucid")]


def test_the_two_commands_are_there_and_are_what_ci_calls() -> None:
    assert "make demo\nmake test\n" in README
    called = re.findall(r"^make \w+$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert called == ["make check", "make test"]


def test_there_are_commands_to_hold_the_readme_to() -> None:
    assert {line.split()[0] for line in commands()} == {*PARSERS, "pellucid-serve"}


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_readme_is_understood(line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "pellucid-serve":
        options = [a.removeprefix("--").replace("-", "_") for a in arguments if a.startswith("--")]
        assert set(options) <= set(Settings.model_fields)
    else:
        PARSERS[program]._parser().parse_known_args(arguments)


def test_the_python_snippet_prints_a_ledger(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fox.png").write_bytes(png(random_pictures(1).decoded(40, 40)[0]))
    (snippet,) = blocks("python")
    changes = {"127.0.0.1:50051": address, "fox.png": str(tmp_path / "fox.png"), 'model="creatures"': 'model="tiny"'}
    for old, new in changes.items():
        assert old in snippet
        snippet = snippet.replace(old, new)
    exec(compile(snippet, "README.md", "exec"), {})  # noqa: S102 (our own text)
    assert "adds up to" in capsys.readouterr().out


def test_the_training_snippet_gives_gradients() -> None:
    (snippet,) = blocks("python", (ROOT / "docs" / "training.md").read_text())
    names: dict[str, object] = {}
    exec(compile(snippet, "training.md", "exec"), names)  # noqa: S102 (our own text)
    assert all(parameter.grad is not None for parameter in names["net"].parameters() if parameter.requires_grad)


def test_every_make_target_that_is_mentioned_exists() -> None:
    mentioned = set(re.findall(r"`make (\w+)`", "".join(path.read_text() for path in DOCUMENTS)))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "serve", "check"} <= mentioned <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_documented_settings_are_the_server_s() -> None:
    documented = set(re.findall(r"`--([a-z-]+)`", (ROOT / "docs" / "serving.md").read_text()))
    assert {name.replace("_", "-") for name in Settings.model_fields} <= documented


def test_no_committed_file_names_a_registry_or_a_path_of_some_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile(r"pypi\.org|files\.pythonhosted|registry\.npmjs|/root/|/home/[a-z]")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix == ".png" or name.startswith("tests/") or not path.is_file():  # tests make up such paths
            continue
        assert not forbidden.search(path.read_text(errors="ignore")), name

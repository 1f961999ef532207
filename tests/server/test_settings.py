"""Settings: which source counts, and one sentence for what is misspelt, missing or out of range, wherever it stands."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from server.__main__ import main
from server.client_environment import CLIENT_VARIABLES
from server.read_settings import WrongSettingsError, read_settings
from server.settings import GROUPS, Settings
from server.settings_text import settings_text


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """Return what reads settings from a command line, variables and a file."""

    def read(*arguments: str, file: str | None = None, **variables: str) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if file is not None:
            (tmp_path / "settings.toml").write_text(file)
            arguments = (*arguments, "--config", str(tmp_path / "settings.toml"))
        return read_settings(arguments, variables)[0]

    return read


def wrong(say: object, *arguments: str, file: str | None = None, **variables: str) -> list[str]:
    with pytest.raises(WrongSettingsError) as caught:
        say(*arguments, file=file, **variables)
    sentences = list(caught.value.sentences)
    assert all("\n" not in sentence for sentence in sentences)
    return sentences


def test_the_command_line_counts_before_the_environment_before_the_file_before_the_default(say: object) -> None:
    file = 'repository = "file"\nport = 1\nworkers = 1\nthreads = 1\nmodel_control = true\n'
    found = say("--port", "3", file=file, PELLUCID_PORT="2", PELLUCID_WORKERS="2")
    assert (found.port, found.workers, found.threads, found.instances) == (3, 2, 1, 0)
    assert (found.repository, found.model_control) == (Path("file"), True)
    assert say("--no-model-control", file=file).model_control is False


def test_the_file_may_be_named_in_the_environment(say: object, tmp_path: Path) -> None:
    (tmp_path / "there.toml").write_text('repository = "models"\nversions = 3\n')
    assert say(PELLUCID_CONFIG=str(tmp_path / "there.toml")).versions == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prot", "1"], "--prot on the command line is no setting; did you mean --port?"),
        (["--prot=1"], "--prot on the command line is no setting; did you mean --port?"),
        (["--max_batch", "1"], "--max_batch on the command line is no setting; did you mean --max-batch?"),
        (["--repo", "x"], "--repo on the command line is no setting"),  # nor is the beginning of one
        (["--zzz"], "--zzz on the command line is no setting; `pellucid-serve --help` lists them"),
        (["stray"], "the command line: unrecognized arguments: stray; --help lists the settings"),
        (["--port"], "the command line: argument --port: expected one argument"),
        (["--port", "a"], "--port on the command line is 'a'; input should be a valid integer"),
        (["--port=70000"], "--port on the command line is '70000'; input should be less than or equal to 65535"),
        (["--device", "tpu"], "--device on the command line is 'tpu'; input should be 'auto', 'cpu' or 'gpu'"),
        (["--versions", "some"], "--versions on the command line is 'some'; input should be 'latest' or 'all' or "),
    ],
)
def test_a_wrong_command_line_is_one_sentence(say: object, arguments: list[str], sentence: str) -> None:
    (said,) = wrong(say, "--repository", "models", *arguments)
    assert said.startswith(sentence)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PELLUCID_PROT", "1", "PELLUCID_PROT in the environment is no setting; did you mean PELLUCID_PORT?"),
        ("PELLUCID_TOKENZ", "x", "PELLUCID_TOKENZ in the environment is no setting; did you mean PELLUCID_TOKENS?"),
        ("PELLUCID_ZZZ", "x", "PELLUCID_ZZZ in the environment is no setting; `pellucid-serve --help` lists them"),
        ("pellucid_prot", "1", "pellucid_prot in the environment is no setting"),
        ("PELLUCID_PORT_80", "1", "PELLUCID_PORT_80 in the environment is no setting"),
        ("PELLUCID_PORT", "a", "PELLUCID_PORT in the environment is 'a'; input should be a valid integer"),
        (
            "PELLUCID_MODEL_CONTROL",
            "perhaps",
            "PELLUCID_MODEL_CONTROL in the environment is 'perhaps'; input should be",
        ),
    ],
)
def test_a_wrong_variable_is_one_sentence(say: object, name: str, value: str, sentence: str) -> None:
    (said,) = wrong(say, "--repository", "models", **{name: value})
    assert said.startswith(sentence)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "prot in {file} is no setting; did you mean port?"),
        ("max-batch = 1", "max-batch in {file} is no setting; did you mean max_batch?"),
        ("[server]\nport = 1", "server in {file} is no setting"),
        ("port = 'a'", "port in {file} is 'a'; input should be a valid integer"),
        ("port = 1\nport = 2", "config: {file} is not a TOML file: "),
        ("port", "config: {file} is not a TOML file: "),
        ("config = 'other.toml'", "config: {file} names another settings file"),
    ],
)
def test_a_wrong_file_is_one_sentence(say: object, tmp_path: Path, text: str, words: str) -> None:
    (said,) = wrong(say, "--repository", "models", file=text)
    assert said.startswith(words.format(file=tmp_path / "settings.toml"))


def test_a_file_that_cannot_be_read_is_one_sentence(say: object, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    for name, words in (
        ("gone", "cannot be read: No such file"),
        (".", "cannot be read: Is a"),
        ("binary", "is not a"),
    ):
        (said,) = wrong(say, "--config", str(tmp_path / name))
        assert said.startswith(f"config: {tmp_path / name} {words}")


def test_each_wrong_setting_has_its_sentence(say: object) -> None:
    said = wrong(say, file="threads = 0\nprot = 1", PELLUCID_WORKERS="none at all")
    assert sorted(sentence.split()[0] for sentence in said) == ["--repository", "PELLUCID_WORKERS", "prot", "threads"]


def test_a_long_wrong_value_is_cut_short(say: object) -> None:
    (said,) = wrong(say, "--repository", "models", "--port", "9" * 100_000)
    assert len(said) < 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model-control", "--processes", "2"], "a client would load a model in one process of several"),
        (["--tls-key", "x"], "one of --tls-certificate and --tls-key is set"),
        (["--tls-certificate", "x"], "one of --tls-certificate and --tls-key is set"),
        (["--tls-client-ca", "x"], "--tls-client-ca is set without --tls-certificate and --tls-key"),
        (["--tokens", "x", "--host", "0.0.0.0"], "--tokens is set without TLS"),  # noqa: S104 (what is refused)
        (["--tokens", "x", "--host", "[::]"], "--tokens is set without TLS"),
    ],
)
def test_settings_that_do_not_fit_together_are_one_sentence(say: object, arguments: list[str], words: str) -> None:
    (said,) = wrong(say, "--repository", "models", *arguments)
    assert said.startswith(words)


def test_tokens_are_taken_where_nobody_can_read_them_or_somebody_says_so(say: object) -> None:
    for arguments in (["--host", "127.0.0.2"], ["--host", "localhost"], ["--host", "[::1]"], ["--tokens-in-clear"]):
        found = say("--repository", "models", "--tokens", "x", "--host", "0.0.0.0", *arguments)  # noqa: S104
        assert found.tokens == Path("x")


def test_what_kubernetes_says_of_services_is_no_setting(say: object) -> None:
    service = {
        "PELLUCID_SERVICE_HOST": "10.0.0.1",
        "PELLUCID_SERVICE_PORT": "50051",
        "PELLUCID_SERVICE_PORT_GRPC": "50051",
        "PELLUCID_PORT": "tcp://10.0.0.1:50051",
        "PELLUCID_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "PELLUCID_PORT_50051_TCP_ADDR": "10.0.0.1",
        "PELLUCID_PORT_50051_TCP_PORT": "50051",
        "PELLUCID_PORT_50051_TCP_PROTO": "tcp",
    }
    canary = {name.replace("PELLUCID_", "PELLUCID_METRICS_"): value for name, value in service.items()}
    found = say("--repository", "models", file="port = 7\n", **service, **canary)
    assert found.port == 7


def test_the_client_s_variables_are_no_misspelt_settings(say: object) -> None:
    assert say("--repository", "models", **dict.fromkeys(CLIENT_VARIABLES, "x")).port == 50051


def test_what_is_printed_is_read_as_the_same_settings(say: object) -> None:
    given = say("--repository", 'odd "name"\\ä', "--versions", "3", "--max-delay-ms", "1.5", "--tokens", "t.toml")
    text = settings_text(given)
    assert say(file=text).model_dump(exclude={"config"}) == given.model_dump(exclude={"config"})
    assert set(tomllib.loads(text)) <= set(Settings.model_fields)


def test_check_prints_the_settings_and_serves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repository", "nowhere", "--check", "--port", "7"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["port"] == 7


def test_check_finds_what_is_wrong_with_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repository", "nowhere", "--check", "--tokens", str(tmp_path / "gone.toml")]) == 1
    assert main(["--repository=x", "--check", "--tls-key", str(tmp_path), "--tls-certificate", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("pellucid-serve: error: ") == captured.err.count("\n") == 2


def test_wrong_settings_are_a_line_each_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "a", "--threads", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("pellucid-serve: error: --") for line in lines)


def test_help_lists_every_setting_in_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for name in Settings.model_fields:
        assert f"\n  --{name.replace('_', '-')}" in printed
    assert [line for line in printed.splitlines() if line.endswith(":") and line[0] != " "] == [
        "options:",
        *(f"{title}:" for title in GROUPS.values()),
    ]


def test_every_group_begins_at_a_setting() -> None:
    assert set(GROUPS) <= set(Settings.model_fields)

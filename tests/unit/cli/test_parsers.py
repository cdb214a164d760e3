"""The command lines: what can be said, what is refused, and that help comes at once."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rush_executor import _cli
from rush_executor._cli.target import Target

# What `--help` must not wait for.
HEAVY = ("redis", "hiredis", "cloudpickle", "tblib", "rich", "logging", "dataclasses", "json", "inspect", "asyncio")
SERVERLESS = {"worker", "server"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUSH_URL", "RUSH_NETWORK", "RUSH_SECRET", "RUSH_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    parser = _cli.make_parser()
    [action] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


def leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers that a command line ends in."""
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [leaf for a in actions for choice in a.choices.values() for leaf in leaves(choice)] or [parser]


def usage_error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said of a command line that is wrong; the exit code is 2."""
    with pytest.raises(SystemExit) as exit_info:
        _cli.main(list(words))
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_every_command_has_its_file() -> None:
    """And nothing else is in the folder but what they share."""
    files = {path.stem for path in Path(_cli.__file__).parent.glob("*.py")}
    assert files - {"__init__", "target", "output", "errors"} == _cli.COMMANDS.keys() == commands().keys()


def test_help_loads_nothing_heavy() -> None:
    """`--help` of no command imports what speaks to servers, or what makes things pretty."""
    code = f"""
import sys
from rush_executor._cli import COMMANDS, main
for command in ("", *COMMANDS):
    try:
        main([*command.split(), "--help"])
    except SystemExit as end:
        assert not end.code
    assert not set(sys.modules) & {set(HEAVY)!r}, (command, set(sys.modules) & {set(HEAVY)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("examples:") == len(_cli.COMMANDS) + 1


@pytest.mark.parametrize("command", _cli.COMMANDS)
def test_examples_are_right(command: str) -> None:
    """Each command has examples, and each of them is a command line that is taken."""
    text = commands()[command].epilog or ""
    found = re.findall(r"rush-executor ([^|&>)\n]+)", text)
    assert any(words.startswith(command) for words in found)
    for words in found:
        args = _cli.make_parser().parse_args(shlex.split(words.split("#")[0].rstrip('" ')))
        assert args.command in _cli.COMMANDS


def test_examples_of_all() -> None:
    """Those of the help of all commands, too."""
    for words in re.findall(r"rush-executor ([^#`\n]+)", (_cli.make_parser().epilog or "").partition("examples:")[2]):
        if "COMMAND" not in words:
            _cli.make_parser().parse_args(shlex.split(words))


def test_every_command_prints_json() -> None:
    """Whatever a command has to say, a program can read."""
    for command, parser in commands().items():
        for leaf in leaves(parser):
            options = {option for action in leaf._actions for option in action.option_strings}
            assert "--json" in options, f"{command}: {leaf.prog}"


def test_no_option_for_a_secret() -> None:
    """Secrets and passwords come from files and from the environment: everybody can read a command line."""
    for command, parser in commands().items():
        for leaf in leaves(parser):
            options = {option for action in leaf._actions for option in action.option_strings}
            secret = {option for option in options if re.search("secret|password", option)}
            assert secret <= {"--secret-file", "--password-file"}, leaf.prog
            assert command in SERVERLESS or {"--url", "--url-file"} <= options, leaf.prog


@pytest.mark.parametrize("url", ["redis://:pw@host/0", "rediss://u:pw@host/0", "redis://host?password=pw"])
@pytest.mark.parametrize("words", ["status", "worker --network n", "tasks show t", "doctor"])
def test_a_password_on_the_command_line(capsys: pytest.CaptureFixture[str], url: str, words: str) -> None:
    """Is refused, says where it belongs, and does not repeat it."""
    error = usage_error(capsys, *words.split(), "--url", url)
    assert "RUSH_URL" in error
    assert "--url-file" in error
    assert "pw" not in error


def test_where_the_url_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command line goes before a file, and both before the environment; passwords are fine in the latter two."""

    def url_of(*words: str) -> str:
        args = _cli.make_parser().parse_args(["status", "--network", "n", *words])
        return Target(args, args.fail).url

    monkeypatch.setenv("RUSH_URL", "redis://:pw@environment/0")
    assert url_of() == "redis://:pw@environment/0"
    file = tmp_path / "url"
    file.write_text("redis://:pw@file/0\n")
    assert url_of("--url-file", str(file)) == "redis://:pw@file/0"
    assert url_of("--url", "redis://line/0") == "redis://line/0"


def test_a_target_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed of a server is without it."""
    monkeypatch.setenv("RUSH_URL", "redis://:pw@environment/0")
    args = _cli.make_parser().parse_args(["status", "--network", "n"])
    assert str(Target(args, args.fail)) == "redis://:***@environment/0"


def test_where_the_network_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line goes before the environment."""
    monkeypatch.setenv("RUSH_NETWORK", "one")
    parse = _cli.make_parser().parse_args
    for words, network in ((["--network", "two"], "two"), ([], "one")):
        args = parse(["status", "--url", "redis://nowhere/0", *words])
        assert Target(args, args.fail).network_id == network


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("worker --network n", "no server"),
        ("worker --url redis://nowhere/0", "no network"),
        ("worker --url redis://nowhere/0 --network n --workers 0", "--workers must be >= 1"),
        ("status --url redis://nowhere/0 --network a{b}", "must not contain"),
        ("status --url-file /no/such/file", "/no/such/file: No such file"),
        ("status --url-file /dev/null", "/dev/null is empty"),
        ("tasks list --url redis://nowhere/0 --secret-file /no/such/file --limit 0", "--limit must be >= 1"),
        ("tasks retry --url redis://nowhere/0", "which tasks?"),
        ("tasks retry a --all-failed --url redis://nowhere/0", "which tasks?"),
        ("tasks cancel --url redis://nowhere/0", "pass --all-queued"),
        ("workers stop --url redis://nowhere/0", "which workers?"),
        ("logs --level LOUD --url redis://nowhere/0 --network n", "LOUD"),
        ("top --interval 0 --url redis://nowhere/0", "--interval"),
        ("reset --url redis://nowhere/0", "no network"),
        ("reset --url redis://nowhere/0 --network n", "pass --yes"),
        ("server --bind 203.0.113.1", "cannot listen on 203.0.113.1"),
        ("server --port 99999", "--port must be"),
        ("server --password-file /no/such/file", "/no/such/file"),
        ("server --host a:b/c", "--host must be a name or an address"),
        ("logs --since -5 --url redis://nowhere/0 --network n", "--since: must be a number of seconds, 0 or more"),
        ("logs --since nan --url redis://nowhere/0 --network n", "--since: must be a number of seconds, 0 or more"),
        (
            "workers stop w --wait -1 --url redis://nowhere/0 --network n",
            "--wait: must be a number of seconds, 0 or more",
        ),
        ("status --url http://nowhere --network n", "'http://nowhere' is no URL of a server: it must be redis://"),
    ],
)
def test_wrong_command_lines(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    """Are told in words, with exit code 2, and nothing is started."""
    assert message in usage_error(capsys, *words.split())


# Of every command that takes the name of a network, as little as it needs besides.
NAMING = (
    "worker --workers 1", "server", "status", "top", "tasks", "tasks cancel --all-queued", "tasks retry --all-failed",
    "tasks show t", "workers", "workers kill --all", "logs", "snapshot f", "reset --yes", "doctor",
)  # fmt: skip


def test_all_that_take_a_name() -> None:
    """Stand in the list above."""
    takes = {
        leaf.prog.removeprefix("rush-executor ").split()[0]
        for parser in commands().values()
        for leaf in leaves(parser)
        if any("--network" in action.option_strings for action in leaf._actions)
    }
    assert {words.split()[0] for words in NAMING} == takes


@pytest.mark.parametrize("words", NAMING)
@pytest.mark.parametrize(("name", "message"), [("", "this one has 0"), ("a b", "must not"), ("\x1b[31m", "\\x1b")])
def test_a_name_that_cannot_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, name: str, message: str
) -> None:
    """Is refused before anything else is said or started; none at all is not "the only network" when it was given."""
    monkeypatch.setenv("RUSH_URL", "redis://127.0.0.1:1/0")
    error = usage_error(capsys, *words.split(), "--network", name)
    assert message in error
    assert "\x1b" not in error
    assert "for network" not in error


@pytest.mark.parametrize("words", ["status", "worker --network n"])
@pytest.mark.parametrize("content", ["geheim", "geheim@host", "redis://:ge/heim@host/0", "http://:geheim@host"])
def test_a_file_without_a_url(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, content: str) -> None:
    """Is told by its name, with what a URL looks like, and without what it holds: that may be a password."""
    file = tmp_path / "file.url"
    file.write_text(content)
    error = usage_error(capsys, *words.split(), "--url-file", str(file))
    assert f"{file} holds no URL of a server: it must be redis://" in error
    assert "heim" not in error


@pytest.mark.parametrize("host", ["a b", "a/b", "a@b", "[::1]", "", "h:p", "x'y"])
def test_a_host_that_cannot_stand_in_a_url(capsys: pytest.CaptureFixture[str], host: str) -> None:
    """Is refused before a server is started."""
    assert "--host must be" in usage_error(capsys, "server", "--host", host)


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Is told in a line, with exit code 1; standard output is empty."""
    assert _cli.main(["status", "--url", "redis://127.0.0.1:1/0", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rush-executor: no server answers at redis://127.0.0.1:1/0")


@pytest.mark.parametrize("words", ["tasks", "workers", "tasks --json", "workers --network n"])
def test_lists_without_an_action(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be listed is, if nothing else is asked for."""
    seen: list[argparse.Namespace] = []
    command, *_ = words.split()
    monkeypatch.setattr(f"rush_executor._cli.{command}.run", lambda args, _: seen.append(args) or 0)
    assert _cli.main(words.split()) == 0
    assert (seen[0].command, seen[0].action, seen[0].json) == (command, "list", "--json" in words)


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Is told in a line, by its name, with exit code 1."""
    assert _cli.main(["restore", "/no/such/file", "--url", "redis://nowhere/0"]) == 1
    assert capsys.readouterr().err == "rush-executor: /no/such/file: No such file or directory\n"


def test_exit_codes_are_told() -> None:
    """Each exit code that a command gives has its line in the reference."""
    assert set(_cli.EXIT_CODES) == {0, 1, 2, 3, 130, 141}


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a user can do something about is told in a line."""

    def broken(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("rush_executor._cli.status.run", broken)
    with pytest.raises(ZeroDivisionError):
        _cli.main(["status"])


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a command without a traceback."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("rush_executor._cli.status.run", interrupted)
    assert _cli.main(["status"]) == 130

"""Scripts as they go out: the text that is loaded is the text whose digest is called."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import hiredis
import pytest

from rush_executor._ledger import scripts
from rush_executor._ledger.scripts import SCRIPT_TEXTS, evalsha, load_commands, pack

LUA = Path(scripts.__file__).parent / "lua"


def unpack(raw: bytes) -> list[bytes]:
    """The words of one packed command."""
    reader = hiredis.Reader()
    reader.feed(raw)
    words = reader.gets()
    assert reader.gets() is False
    assert isinstance(words, list)
    return words


def test_every_file_is_a_script() -> None:
    """Each file but the prelude can be called, and begins with what it needs of the prelude, and nothing else."""
    assert SCRIPT_TEXTS.keys() == {path.stem for path in LUA.glob("*.lua")} - {"prelude"}
    prelude = re.sub(r"--[^\n]*", "", (LUA / "prelude.lua").read_text(encoding="utf-8"))
    bodies = dict(re.findall(r"^local function (\w+)(.*?^end)", prelude, re.MULTILINE | re.DOTALL))
    shared = list(bodies)

    def called_by(text: str) -> set[str]:
        return {function for function in shared if re.search(rf"\b{function}\(", text)}

    needs = {}
    for number, (function, body) in enumerate(bodies.items()):
        calls = called_by(body)
        assert calls <= set(shared[:number]), f"{function} calls what stands below it"
        needs[function] = {function}.union(*(needs[name] for name in calls))
    needed = set()
    for name, text in SCRIPT_TEXTS.items():
        own = (LUA / f"{name}.lua").read_text(encoding="utf-8")
        assert text.endswith(own)
        calls = set().union(*(needs[function] for function in called_by(re.sub(r"--[^\n]*", "", own))))
        before = re.findall(r"^local function (\w+)", text.removesuffix(own), re.MULTILINE)
        assert before == [function for function in shared if function in calls], name
        needed |= calls
    assert needed == set(shared), "functions that nothing calls"


def test_what_is_called_is_what_is_loaded() -> None:
    """The server names a script by the digest of its text."""
    loaded = [unpack(command) for command in load_commands()]
    assert [words[:2] for words in loaded] == [[b"SCRIPT", b"LOAD"]] * len(SCRIPT_TEXTS)
    texts = {words[2].decode() for words in loaded}
    assert texts == set(SCRIPT_TEXTS.values())
    for name, text in SCRIPT_TEXTS.items():
        digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        assert unpack(evalsha(name, (), []))[:2] == [b"EVALSHA", digest.encode()]


def test_a_call() -> None:
    """Keys, then arguments: text, bytes and numbers."""
    words = unpack(evalsha("push_tasks", ("k1", "k2"), ["a", b"\x00\xff", -3, ""]))
    assert words[2:] == [b"2", b"k1", b"k2", b"a", b"\x00\xff", b"-3", b""]


def test_no_such_script() -> None:
    """A misspelled name is found when the call is made, not by the server."""
    with pytest.raises(KeyError):
        evalsha("push_task", (), [])


def test_pack_takes_a_memoryview() -> None:
    """Chunks of a large payload are not copied before they are packed."""
    assert unpack(pack(("HSET", "key", "0", memoryview(b"0123456789")[2:5]))) == [b"HSET", b"key", b"0", b"234"]


@pytest.mark.parametrize("name", sorted(SCRIPT_TEXTS))
def test_scripts_are_of_every_supported_server(name: str) -> None:
    """Redis 6.2 is the oldest: no shebang, no `redis.log` of newer ones, no global variable, which Redis refuses."""
    text = re.sub(r"--[^\n]*", "", SCRIPT_TEXTS[name])
    assert not text.startswith("#!")
    assert "server." not in text, "Valkey's own name for `redis.`"
    assigned = re.findall(r"^(?:\s*)([a-z_]\w*)\s*=[^=]", text, re.MULTILINE)
    local = set(re.findall(r"\blocal (?:function )?(\w+)", text)) | {
        name for names in re.findall(r"\blocal ([\w, ]+)=", text) for name in re.split(r",\s*", names.strip())
    }
    assert set(assigned) <= local


@pytest.mark.parametrize("name", sorted(SCRIPT_TEXTS))
def test_scripts_do_not_ask_for_time_or_chance(name: str) -> None:
    """Sent twice, a script must find the same; a clock or a die would make two of it.

    A time may be noted, which `now` of the prelude tells, where the second sending changes nothing.
    """
    text = re.sub(r"--[^\n]*", "", SCRIPT_TEXTS[name]).replace("local time = redis.call('TIME')", "", 1)
    assert not re.search(r"'(TIME|RANDOMKEY|SRANDMEMBER|SPOP|HRANDFIELD)'|math\.random|os\.", text)

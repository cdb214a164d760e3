"""`Keys` alone spells keys, and its table is the schema."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._protocol.keys import Keys, check_network_id
from tests.key_table import KeyRow, key_rows

ROWS = key_rows()
# Names of methods and properties that spell a key.
MEMBERS = {
    name: member
    for name, member in inspect.getmembers(Keys)
    if not name.startswith("_") and name not in ("network_id", "prefix")
}


def test_table_and_methods_agree() -> None:
    """Each key of the table has its method, and each method its row."""
    assert ROWS.keys() == MEMBERS.keys()


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_a_key(row: KeyRow) -> None:
    """A key is spelled as its row says; without an id a method gives what all keys of its kind begin with."""
    keys = Keys("my-network")
    if row.of:
        assert getattr(keys, row.name)("some-id") == f"rush:{{my-network}}:{row.name}:some-id"
        assert getattr(keys, row.name)() + "some-id" == getattr(keys, row.name)("some-id")
    else:
        assert getattr(keys, row.name) == f"rush:{{my-network}}:{row.name}"


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_a_row(row: KeyRow) -> None:
    """A row says what type the key has and who deletes it."""
    assert row.type in ("hash", "set", "zset", "list", "stream", "string")
    assert row.deleter


def test_keys_of_different_kinds_never_meet() -> None:
    """An id that looks like another kind's key gives no other's key."""
    keys = Keys("n")
    spelled = [getattr(keys, r.name)(x) for r in ROWS.values() if r.of for x in ("", "a", "a:b", "network", "bell")]
    spelled += [getattr(keys, row.name) for row in ROWS.values() if not row.of]
    assert len(set(spelled)) == len(spelled)


NETWORK_IDS = st.text(min_size=1, max_size=200).filter(
    lambda text: text.isprintable() and not any(c in "{}" or c.isspace() for c in text)
)


@given(NETWORK_IDS)
def test_one_hash_tag(network_id: str) -> None:
    """All keys of a network lie in one slot of a cluster: the part in braces, the first that there is, is its id."""
    keys = Keys(network_id)
    for row in ROWS.values():
        key = getattr(keys, row.name)("{x}") if row.of else getattr(keys, row.name)
        assert key[key.index("{") + 1 : key.index("}")] == network_id
        assert key.startswith(keys.prefix)
        key.encode()


@given(NETWORK_IDS, NETWORK_IDS)
def test_networks_never_meet(one: str, two: str) -> None:
    """No key of a network begins with what the keys of another one begin with."""
    if one != two:
        assert not Keys(one).prefix.startswith(Keys(two).prefix)


@pytest.mark.parametrize("network_id", ["a", "x" * 200, "my-network.2", "a:b", "ümläut", "日本", "*?[]\\", "0"])
def test_good_network_ids(network_id: str) -> None:
    """What can stand in a key may be an id."""
    assert check_network_id(network_id) == network_id


@pytest.mark.parametrize(
    ("network_id", "said"),
    [
        ("", "1 to 200"),
        ("x" * 201, "201"),
        ("a{b", "'{'"),
        ("a}b", "'}'"),
        ("a b", "' '"),
        ("a\tb\n", r"'\\t', '\\n'"),
        ("a\0b", r"'\\x00'"),
        ("a\u2028b", r"\\u2028"),
        ("a\ud800b", r"\\ud800"),
        ("a\xa0b", r"\\xa0"),
    ],
)
def test_bad_network_ids(network_id: str, said: str) -> None:
    """The message names what is wrong."""
    for refuse in (check_network_id, Keys):
        with pytest.raises(ValueError, match=said):
            refuse(network_id)


@pytest.mark.parametrize("network_id", [None, 1, b"network", ["a"]])
def test_no_string(network_id: object) -> None:
    """Another type is a TypeError."""
    with pytest.raises(TypeError, match=type(network_id).__name__):
        check_network_id(network_id)  # type: ignore[arg-type]


def test_keys_are_frozen() -> None:
    """A network's keys do not change, and two of the same network are equal."""
    keys = Keys("a")
    with pytest.raises(AttributeError):
        keys.network_id = "b"  # type: ignore[misc]
    assert keys == Keys("a")

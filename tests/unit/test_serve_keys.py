"""The keys of the service: their file is followed, and only a whole one counts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipelines.serve.http.keys import KeyRing, parse_keys, read_keys
from pipelines.serve.http.limits import HttpLimits


def ring_of(file: Path) -> KeyRing:
    """The keys of a file that the test looks at itself."""
    return KeyRing(read_keys(file), file)


def names(ring: KeyRing, *secrets: str) -> list[str | None]:
    return [ring.name_of(f"Bearer {secret}") for secret in secrets]


def test_a_revoked_key_is_out_and_a_new_one_in_at_the_second_look(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\nkept\n")
    ring = ring_of(file)
    file.write_text("kept\nnew\n")
    assert names(ring, "old", "kept", "new") == ["key 0", "key 1", None]
    ring.look()
    ring.look()
    assert names(ring, "old", "kept", "new") == [None, "key 0", "key 1"]


def test_a_file_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first\nsecond\n")
    ring = ring_of(file)
    whole = "first\nsecond\nthird\n"
    for length in range(len(whole) + 1):
        file.write_text(whole[:length])
        ring.look()
        assert names(ring, "first", "second", "thir", "f") == ["key 0", "key 1", None, None]
    ring.look()
    assert names(ring, "first", "third", "thir") == ["key 0", "key 2", None]


@pytest.mark.parametrize("spoil", [
    lambda file: file.unlink(),
    lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(b"\n \n"),
    lambda file: file.write_bytes(b"first\nan other\n"),
    lambda file: file.write_bytes(b"first\xff\n"),
    lambda file: (file.unlink(), file.mkdir()),
])  # fmt: skip
def test_the_last_good_keys_stay_and_this_is_said_once(spoil, tmp_path, caplog) -> None:
    file = tmp_path / "keys"
    file.write_text("first\n")
    ring = ring_of(file)
    spoil(file)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ring.look()
    assert ring.has_keys
    assert names(ring, "first", "an", "other", "") == ["key 0", None, None, None]
    (record,) = caplog.records
    assert str(file) in record.getMessage()
    assert "an other" not in caplog.text


def test_names_of_keys() -> None:
    keys = parse_keys("plain\nalice: a1\n\nalice:\ta2\nbob:b\n", "here")
    ring = KeyRing(keys, None)
    assert names(ring, "plain", "a1", "a2", "bob:b", "b", "alice: a1") == [
        "key 0", "alice", "alice", "key 3", None, None,
    ]  # fmt: skip
    for wrong in ("alice: ", "al ice: key", "alice: a key", "a b"):
        with pytest.raises(ValueError, match=r"^here: line 1 holds a blank"):
            parse_keys(wrong, "here")


def test_the_file_is_not_followed_by_the_configuration_itself(tmp_path: Path) -> None:
    """A copy of the service that starts later, from the same configuration, comes to the keys of now."""
    file = tmp_path / "keys"
    file.write_text("old\n")
    limits = HttpLimits(api_key_file=file)
    file.write_text("new\n")
    ring = limits.key_ring()
    ring.look()
    ring.look()
    assert names(ring, "old", "new") == [None, "key 0"]

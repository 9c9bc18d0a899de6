"""What is written appears whole, and what is read is checked."""

import json
import os
from typing import Any, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.damage import full_disk

from mom_jax.errors import InputError
from mom_jax.files import (
    parse_json,
    read_json,
    read_json_lines,
    read_text,
    remove_leftovers,
    temporary_path,
    write_atomically,
    write_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class Entry(TypedDict):
    """A form with an optional field."""

    name: str
    sizes: list[int]
    note: NotRequired[str | None]


@given(JSON)
def test_what_is_written_is_read(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path, Any, "none") == value


@given(JSON)
def test_any_json_fits_a_form_or_is_refused_in_one_line(value):
    text = json.dumps(value)
    for form in (Entry, list[Entry], dict[str, float], list[int] | None, str):
        try:
            assert parse_json(text, form) == value
        except ValueError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"name": "a", "sizes": [1]}', None),
        ('{"name": "a", "sizes": [], "note": null, "more": 1}', None),
        ('{"name": "a"}', "has no 'sizes'"),
        ('{"name": 1, "sizes": []}', r"\['name'\] is a whole number, not text"),
        ('{"name": "a", "sizes": [1, true]}', r"\['sizes'\]\[1\] is true or false, not a whole number"),
        ('{"name": "a", "sizes": {}}', r"\['sizes'\] is an object, not a list"),
        ('{"name": "a", "sizes": [], "note": 1}', r"\['note'\] is a whole number, not text"),
        ('{"name": "a", "sizes": [], "name": "b"}', "'name' occurs twice"),
        ("[]", "the whole is a list, not an object"),
        ("{", "line 1"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "limit"),
    ],
)
def test_forms(tmp_path, text, wrong):
    path = tmp_path / "entry.json"
    path.write_text(text, encoding="utf-8")
    if wrong is None:
        assert read_json(path, Entry, "write it again") == json.loads(text)
        return
    with pytest.raises(InputError, match=rf"^file=.*entry.json: is damaged \(.*{wrong}.*\); write it again$"):
        read_json(path, Entry, "write it again", field="file")


def test_whole_numbers_are_numbers_and_truth_is_none():
    assert parse_json("[1, 2.5]", list[float]) == [1, 2.5]
    with pytest.raises(ValueError, match="true or false, not a number"):
        parse_json("[true]", list[float])


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for path, wrong in ((tmp_path / "absent", "No such file"), (tmp_path, "Is a dir"), (tmp_path / "latin", "byte 3")):
        with pytest.raises(InputError, match=f"{wrong}.*; do this"):
            read_text(path, "do this")
        with pytest.raises(InputError, match=f"{wrong}.*; do this"):
            read_json(path, Any, "do this")
    with pytest.raises(InputError, match="No such file"):
        read_json_lines(tmp_path / "absent", Any)


def test_damaged_lines_are_told_and_the_others_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n[]\n\xff\n{"step": 2}\n{"step": 3')
    records, complaints = read_json_lines(path, dict[str, Any])
    assert records == [{"step": 1}, {"step": 2}]
    assert [line.partition(" is damaged")[0] for line in complaints] == [f"{path}:{n}" for n in (2, 3, 4)]


def test_numbers_that_json_has_no_word_for(tmp_path):
    for value in (float("nan"), {"a": [float("inf")]}):
        with pytest.raises(InputError, match="NaN or infinite"):
            write_json(tmp_path / "a.json", value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "index.json"
    write_atomically(path, "old ü")
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert read_text(path, "") == "old ü" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("host", ["here", "here.lan"])
def test_only_dead_processes_leftovers_go(tmp_path, monkeypatch, host):
    monkeypatch.setattr("socket.gethostname", lambda: host)
    monkeypatch.setattr("mom_jax.files._is_running", lambda pid: pid != 2)
    names = [f".a.bin.{host}.1.tmp", f".a.bin.{host}.2.tmp", ".a.bin.there.2.tmp", "a.bin", ".a.tmp"]
    for path in (*map(tmp_path.joinpath, names), mine := temporary_path(tmp_path / "b")):
        path.touch()
    assert str(os.getpid()) in mine.name
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {names[0], *names[2:], mine.name}

import errno
import os
import stat
import threading

import pytest

from dipgo.errors import DipgoError
from dipgo.files import read_json, write_bytes, write_text


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_a_file_is_written_and_replaced(tmp_path, as_path):
    file = tmp_path / "new" / "folder" / "a.json"
    write_text(as_path(file), "one")
    write_text(as_path(file), "zwei: ö")
    assert file.read_text(encoding="utf-8") == "zwei: ö" and left_in(file.parent) == ["a.json"]


@pytest.mark.parametrize("place", ["os.replace", "os.fsync", "os.open", "os.fdopen"])
@pytest.mark.parametrize("fault, raised", [(full_disk, DipgoError), (interrupted, KeyboardInterrupt)])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, place, fault, raised):
    file = tmp_path / "a.json"
    write_text(file, "old")
    monkeypatch.setattr(place, fault)
    with pytest.raises(raised):
        write_text(file, "new")
    monkeypatch.undo()
    assert file.read_text() == "old" and left_in(tmp_path) == ["a.json"]


def test_a_text_with_half_a_character_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    write_text(file, "old")
    with pytest.raises(DipgoError, match="a.json: not written: the text holds half a character"):
        write_text(file, "\ud800")
    assert file.read_text() == "old"


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_decides_the_permissions(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "real" / "a.json")
    write_text(link, "1")
    assert link.is_symlink() and (tmp_path / "real" / "a.json").read_text() == "1"


def test_a_pipe_is_written_to(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(timeout=10)
    assert read == ["through"] and left_in(tmp_path) == ["pipe"]


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(DipgoError, match="a.json: not written, nothing left behind: Is a directory"):
        write_text(tmp_path / "a.json", "1")


BAD = {
    "UTF-16": ("{}".encode("utf-16"), "no text in UTF-8"),
    "Latin-1": (b'{"a": "\xe9"}', "no text in UTF-8"),
    "cut short": (b'{"a": [1, 2', "delimiter"),
    "empty": (b"", "Expecting value"),
    "5,000 digits": (b"[" + b"9" * 5000 + b"]", "digits"),
    "deep nesting": (b"[" * 100_000, "nested too deeply"),
    "NaN": (b"[NaN]", "NaN is no number of JSON"),
    "infinity": (b"[-Infinity]", "-Infinity is no number"),
    "a number beyond floats": (b'{"a": [0.5, -1e999]}', "-1e999 is beyond the range of numbers"),
    "a key twice": (b'{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' comes twice"),
    "half a character": (b'{"a": ["\\ud83d"]}', "half a character"),
    "half a character in a key": (b'{"\\udc00": 1}', "half a character"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_json_is_refused_in_one_line_with_the_files_name(tmp_path, name):
    content, why = BAD[name]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DipgoError) as raised:
        read_json(tmp_path / "a.json", "a record")
    assert str(raised.value).startswith(f"{tmp_path / 'a.json'}: not a record: ") and why in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DipgoError, match="gone.json: No such file"):
        read_json(tmp_path / "gone.json")
    with pytest.raises(DipgoError, match="Is a directory"):
        read_json(tmp_path)


def test_escapes_of_whole_characters_are_read(tmp_path):
    (tmp_path / "a.json").write_text('["\\ud83d\\ude00", "\\u00e9"]')
    assert read_json(str(tmp_path / "a.json")) == ["😀", "é"]

"""One folder, one writer."""

import os
import signal
import subprocess
import sys
import threading

import filelock
import pytest

from mom_jax.errors import InputError
from mom_jax.locks import only_writer

HOLD = """
import sys, time
from pathlib import Path
from mom_jax.locks import only_writer
with only_writer(Path(sys.argv[1]), "work"):
    print("in", flush=True)
    time.sleep(60)
"""


def test_another_process_is_named_and_leaves_no_lock_when_it_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "in\n"
        told = rf"run_dir={tmp_path}: is in use: process {holder.pid} on .* is writing into it"
        with pytest.raises(InputError, match=told), only_writer(tmp_path, "work"):
            pass
        with only_writer(tmp_path, "other work"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with only_writer(tmp_path, "work"):
        pass


def test_a_short_piece_of_work_is_waited_for(tmp_path):
    path = tmp_path / "count"
    path.write_text("0", encoding="utf-8")

    def count():
        for _ in range(5):
            with only_writer(tmp_path, "work", wait=30):
                path.write_text(str(int(path.read_text(encoding="utf-8")) + 1), encoding="utf-8")

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text(encoding="utf-8") == "15"


def test_the_same_process_may_not_enter_twice(tmp_path):
    with only_writer(tmp_path / "new", "work"):
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), only_writer(tmp_path / "new", "work"):
            pass
        (tmp_path / "new" / ".work.lock.json").write_text("{", encoding="utf-8")
        with pytest.raises(InputError, match="another process is writing"), only_writer(tmp_path / "new", "work"):
            pass


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(37, "No locks available")], ids=["missing", "ENOLCK"])
def test_a_file_system_without_locks_is_said_to_be_unguarded(error, tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with only_writer(tmp_path, "work"):
        assert "is on a file system without locks" in caplog.text


@pytest.mark.parametrize("place", ["file", "file/below", "self", "a" * 300])
def test_a_folder_that_cannot_be_made(place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "self").symlink_to(tmp_path / "self")
    cannot = pytest.raises(InputError, match=r"run_dir=.*: cannot be created \(.+\); give another folder")
    with cannot, only_writer(tmp_path / place, "work"):
        pass

"""Processes, here threads, that meet before JAX knows of them."""

import socket
import threading
import time
import warnings

import jax
import pytest

from mom_jax.errors import InputError
from mom_jax.training import companions
from mom_jax.training.companions import Companions
from mom_jax.training.config import ProcessesConfig
from mom_jax.training.meeting import meet
from mom_jax.training.processes import _connect, _place


@pytest.fixture
def address():
    """A port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def ends(*calls):
    """What each of these calls of `meet` raises, all at once; None where it returns."""
    found = [None] * len(calls)

    def run(number):
        try:
            for connection in meet(*calls[number]).values():
                connection.close()
        except InputError as error:
            found[number] = str(error)

    threads = [threading.Thread(target=run, args=[number]) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_all_come_and_the_port_is_free_again(address):
    for _ in range(2):
        assert ends(*((address, 3, index, 20) for index in (1, 2, 0))) == [None] * 3
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", int(address.rpartition(":")[2])))


def test_who_is_missing_is_named_by_all(address):
    told = f"did not come to {address} within 0.6 s; start all, and see what they say"
    late = f"processes.count=4: processes 2, 3 {told}"
    assert ends((address, 4, 0, 0.6), (address, 4, 1, 0.6)) == [late, late]
    assert ends((address, 2, 0, 0.6)) == [f"processes.count=2: process 1 {told}"]


def test_two_of_one_number_or_of_another_count(address):
    found = ends((address, 3, 0, 1.5), (address, 3, 1, 20), (address, 3, 1, 20), (address, 2, 1, 20))
    assert "process 2 did not come" in found[0]
    assert sum("another process has this number" in said for said in found[1:3]) == 1
    assert found[3] == (
        "processes.index=1: process 0 was told that there are 3 processes; give each process its own number"
    )


def test_strangers_and_those_who_leave_do_not_count(address):
    """Someone scans ports, another process comes and is killed, and comes again."""
    place = ("127.0.0.1", int(address.rpartition(":")[2]))

    def knock():
        for said in (b"GET / HTTP/1.1\r\n\r\n\n", b"", b'{"index": 1, "count": 2}\n'):
            for _ in range(100):
                try:
                    with socket.create_connection(place, timeout=5) as connection:
                        connection.sendall(said)
                    break
                except OSError:
                    time.sleep(0.02)

    thread = threading.Thread(target=knock)
    thread.start()
    assert ends((address, 3, 0, 20), (address, 3, 2, 20), (address, 3, 1, 20)) == [None] * 3
    thread.join()


def test_a_port_where_nobody_listens():
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"coordinator={address}: process 0 does not answer there .*refused"):
            meet(address, 2, 1, patience=0.1)


def pairs(count):
    """The connections of each process, as `meet` gives them."""
    ends = [socket.socketpair() for _ in range(count - 1)]
    return [dict(enumerate((ours for ours, _ in ends), 1)), *({0: theirs} for _, theirs in ends)]


@pytest.fixture
def exits(monkeypatch):
    """Whoever is ended from outside adds its status here."""
    statuses = []
    monkeypatch.setattr(companions.os, "_exit", statuses.append)
    return statuses


LINE = "processes.index={}: this process ended before the others"


def both_end(exits):
    """Whether the two others have been ended, in some time."""
    late = time.monotonic() + 10
    while exits != [1, 1] and time.monotonic() < late:
        time.sleep(0.01)
    return exits == [1, 1]


def test_when_one_dies_all_know_which(exits, capsys):
    connections = pairs(3)
    others = [Companions(connections[number], grace=0.1) for number in range(2)]
    connections[2][0].close()
    for other in others:
        assert LINE.format(2) in str(other.lost(wait=10))
    assert both_end(exits) and capsys.readouterr().err == "", "it was told already"


def test_when_the_first_is_killed_the_others_end_at_once(exits, capsys):
    """JAX would end them with a stack trace, so they wait for nothing."""
    connections = pairs(3)
    _others = [Companions(connections[number], grace=1000) for number in (1, 2)]
    for connection in connections[0].values():
        connection.close()
    assert both_end(exits) and capsys.readouterr().err.count(LINE.format(0)) == 2


def test_when_the_first_leaves_the_others_may_say_why_they_end(exits):
    connections = pairs(3)
    first, *others = (Companions(of, grace=0.1) for of in connections)
    first.leave()
    assert all(LINE.format(0) in str(other.lost(wait=10)) for other in others)
    assert both_end(exits)


def test_who_ends_as_it_should_takes_nobody_along(exits):
    connections = pairs(3)
    first, second, third = (Companions(of, grace=0.05) for of in connections)
    third.part()
    connections[2][0].close()
    time.sleep(0.2)
    assert first.lost() is None and second.lost() is None
    second.leave()  # with an error
    assert "index=1" in str(first.lost(wait=10))
    first.part()
    time.sleep(0.2)
    assert not exits


def test_a_cluster_says_who_we_are(monkeypatch):
    assert _place(ProcessesConfig("auto"), 1) is None
    job = {"JOB_ID": "7", "STEP_NODELIST": "node[3-9]", "NTASKS": "14", "PROCID": "5", "LOCALID": "1"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert _place(ProcessesConfig("auto"), 1) == ("node3:61447", 14, 5)
    assert _place(ProcessesConfig("here:1", 2, 1), 1) == ("here:1", 2, 1)


def test_only_who_asks_a_cluster_hears_what_that_needs(monkeypatch, recwarn):
    """JAX looks for a cluster, and warns of packages that this would need, also where it was told everything."""
    said = "\nKubernetes environment detected, but the `kubernetes` package is not installed"
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: warnings.warn(said, stacklevel=1))
    _connect(ProcessesConfig("here:1", 2, 1), "here:1", 1)
    assert not recwarn.list
    _connect(ProcessesConfig("auto"), None, 1)
    assert len(recwarn.list) == 1

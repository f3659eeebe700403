"""Rare meetings of states of a connection: no answer is lost, and nothing is held for ever."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from api.http import connection
from api.http.connection import FOREVER
from tests.harness import DEADLINE_S

from .served import HOST, Served, served
from .test_server import CHUNKED, CLOSE, echoed, get, post

SHORT_S = 0.3
LARGE = b"/large?1000000"


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as running:
        yield running


def chunked(path: bytes = b"/", headers: bytes = b"", trailer: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\n%b%b%b\r\n" % (path, HOST, CHUNKED, headers)
    return head + b"4\r\nbody\r\n0\r\n%b\r\n" % trailer


@pytest.mark.parametrize("budget", ["MAX_UPLOADS", "MAX_UNPARSED", "MAX_UNSENT"])
def test_a_client_that_alone_holds_too_much_is_cut_off_without_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, budget: str
) -> None:
    monkeypatch.setattr(connection, budget, 50_000)
    caplog.set_level(logging.WARNING)
    sent = {
        "MAX_UPLOADS": post(b"x" * 200_000),
        "MAX_UNPARSED": get(b"/wait") + get() * 3000,
        "MAX_UNSENT": (get(LARGE) + get()) * 4,
    }[budget]
    with served() as server:
        client = server.connect(receive_buffer=4096)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.send(sent).read()
        server.wait_for(lambda: not server.server.connections.open, "it was ended")
        server.call(server.app.gate.set)
        server.wait_for(lambda: not server.server.connections.tasks, "nothing is under way")
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_who_takes_most_of_the_last_answers_and_stops_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("KEEP_ALIVE_S", "LINGER_S", "WRITE_TIMEOUT_S"):
        monkeypatch.setattr(connection, name, SHORT_S)
    monkeypatch.setattr(connection, "MIN_WRITE_RATE", 1_000_000)
    # There is room again once a quarter of it is left: one of the answers.
    monkeypatch.setattr(connection, "WRITE_BUFFER", 1_000_000)
    monkeypatch.setattr("api.server.SWEEP_S", 0.05)
    with served() as server:
        client = server.connect(receive_buffer=4096).send(get(b"/large?200000") * 20)
        server.wait_for(lambda: len(server.app.seen) > 4, "no more fits")
        (one,) = server.server.connections.open
        server.wait_for(lambda: one.is_full and one.is_unused, "all are answered that were served")
        server.call(one.stop)
        server.wait_for(lambda: one._is_closing and one.deadline == FOREVER, "it is waited for")
        while one.is_full:
            client.socket.recv(4096)
            server.run(asyncio.sleep(0))
        assert one.transport.get_write_buffer_size() > 0
        server.wait_for(lambda: not server.server.connections.open, "it was ended")


def test_requests_behind_a_chunked_body_and_a_large_answer_are_answered_after_the_end(
    server: Served,
) -> None:
    client = server.connect(receive_buffer=4096)
    client.send(chunked(LARGE) + get() + get() + post(b"last")).send_end()
    server.wait_for(lambda: len(server.app.seen) >= 1, "the first is served")
    answers = client.answers()
    assert len(answers) == 4
    assert echoed(answers[-1].body) == "last"


def test_a_hidden_half_head_is_refused_at_the_end(server: Served) -> None:
    first, second = server.connect().send(chunked() + b"GET / HT").send_end().answers()
    assert echoed(first.body) == "body"
    assert second.problem == "bad-request"


def test_bytes_that_came_while_the_last_answer_was_made_do_not_reset_it(server: Served) -> None:
    client = server.connect().send(get(b"/wait", CLOSE))
    server.wait_for(lambda: len(server.app.seen) == 1, "it is served")
    client.send(get() * 100)
    server.call(server.app.gate.set)
    (answer,) = client.answers()
    assert answer.status == 200


def test_a_connection_that_both_sides_ended_is_gone_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 2 * DEADLINE_S)
    with served() as server:
        (answer,) = server.connect().send(b"hello\r\n\r\n").answers()
        assert answer.status == 400
        server.wait_for(lambda: not server.server.connections.open, "it is gone")


def test_a_host_too_long_for_any_name_is_refused_and_not_remembered(server: Served) -> None:
    connection.is_host.cache_clear()
    for size in (300, 30_000):
        request = b"GET / HTTP/1.1\r\n" + CLOSE + b"Host: %b\r\n\r\n" % (b"x" * size)
        (answer,) = server.connect().send(request).answers()
        assert answer.problem == "bad-request"
    assert connection.is_host.cache_info().currsize == 0


@pytest.mark.parametrize(
    "framing",
    [
        CHUNKED * 2,
        CHUNKED + b"Content-Length: 4\r\n",
        b"Transfer-Encoding:\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: identity\r\n" + CHUNKED,
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Content-Length: 4\r\nContent-Length: 4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: 4 4\r\n",
        b"Content-Length : 4\r\n",
        b"Content-Length\r\n: 4\r\n",
    ],
)
def test_a_body_whose_length_could_be_read_in_two_ways_is_refused(
    server: Served, framing: bytes
) -> None:
    sent = b"POST / HTTP/1.1\r\n" + HOST + framing + b"\r\n4\r\nbody\r\n0\r\n\r\n"
    (answer,) = server.connect().send(sent + get()).answers()
    assert answer.status in (400, 501)
    assert answer.problem in ("bad-request", "unknown-coding")
    assert not server.app.seen


def test_a_trailer_is_no_header_of_the_next_request(server: Served) -> None:
    trailer = b"Authorization: Bearer x\r\nIdempotency-Key: k\r\n"
    server.connect().send(chunked(trailer=trailer) + chunked(headers=CLOSE)).answers()
    first, second = server.app.seen
    names = {b"host", b"transfer-encoding"}
    assert {name for name, _ in first["headers"]} == names
    assert {name for name, _ in second["headers"]} == names | {b"connection"}


def test_an_empty_header_is_one(server: Served) -> None:
    server.connect().send(get(headers=b"A:\r\nB: c\r\nD:\r\n" + CLOSE)).answers()
    (scope,) = server.app.seen
    assert scope["headers"] == [
        (b"host", b"x"),
        (b"a", b""),
        (b"b", b"c"),
        (b"d", b""),
        (b"connection", b"close"),
    ]

"""The HTTP server: every request is answered or refused in words, and every state ends."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from starlette.types import Receive, Scope, Send

from api.http import connection
from api.http.connection import MAX_DISCARD, MAX_FRAMING, MAX_HEAD, MAX_HEADERS, MAX_TARGET
from api.server import CannotListen, Server, local_host

from .served import HOST, Served, parse_answers, served

CLOSE = b"Connection: close\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SHORT_S = 0.3


def get(path: bytes = b"/", headers: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, HOST, headers)


def post(body: bytes = b"body", path: bytes = b"/", headers: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\n%b%b%b\r\n%b" % (path, HOST, headers, length, body)


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as running:
        yield running


def echoed(body: bytes) -> str:
    return str(json.loads(body)["body"])


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /%ff HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: user@x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x:port\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n2\r\n{}XX0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n" + b"F" * 17 + b"\r\n",
        b"POST / HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request_are_refused_with_a_problem(shared: Served, sent: bytes) -> None:
    (answer,) = shared.connect().send(sent).answers()
    assert (answer.status, answer.problem) == (400, "bad-request")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n", 501, "unknown-method"),
        (b"PROPFIND / HTTP/1.1\r\nHost: x\r\n\r\n", 501, "unknown-method"),
        (get(headers=b"Transfer-Encoding: xchunked\r\n"), 501, "unknown-coding"),
        (get(headers=b"Transfer-Encoding: gzip, chunked\r\n"), 501, "unknown-coding"),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 501, "unknown-method"),
        (get(b"/" + b"x" * MAX_TARGET), 414, "target-too-long"),
        (get(b"/?" + b"x" * MAX_TARGET), 414, "target-too-long"),
        (get(headers=b"X: " + b"y" * MAX_HEAD + b"\r\n"), 431, "head-too-large"),
        (get(headers=b"X: y\r\n" * MAX_HEADERS), 431, "head-too-large"),
    ],
)
def test_what_is_http_and_beyond_a_limit_is_refused_by_its_name(
    shared: Served, sent: bytes, status: int, kind: str
) -> None:
    (answer,) = shared.connect().send(sent).answers()
    assert (answer.status, answer.problem) == (status, kind)


@pytest.mark.parametrize(
    "line", [b"FOO / HTTP/1.1\r\n", b"GETS / HTTP/1.1\r\n", b"G / HTTP/1.1\r\n"]
)
@pytest.mark.parametrize("first", [b"", get()])
def test_a_method_is_unknown_wherever_a_segment_ends(
    shared: Served, line: bytes, first: bytes
) -> None:
    for cut in range(1, len(line)):
        client = shared.connect().send(first)
        if first:
            client.read_answer()
        client.send(line[:cut])
        shared.run(asyncio.sleep(0.005))
        (answer,) = client.send(line[cut:] + HOST + b"\r\n").answers()
        assert (answer.status, answer.problem) == (501, "unknown-method"), cut


def test_a_line_that_becomes_no_request_is_refused_at_its_end(shared: Served) -> None:
    for rest in (b"\r\n", b"\0", b"x" * MAX_TARGET):
        client = shared.connect().send(b"hello")
        shared.run(asyncio.sleep(0.005))
        (answer,) = client.send(rest).answers()
        assert answer.problem == "bad-request"


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/a/", "/a", b""),
        (b"/a%2Fb/c%20d?e=%20&f", "/a%2Fb/c d", b"e=%20&f"),
        (b"/a?b?c/", "/a", b"b?c/"),
        (b"//a", "//a", b""),
        (b"http://x", "/", b""),
        (b"HTTP://y:80?q=/", "/", b"q=/"),
        (b"https://[::1]:443/a%c3%a9?q", "/a\xe9", b"q"),
    ],
)
def test_a_target_is_a_path_or_a_uri(
    shared: Served, target: bytes, path: str, query: bytes
) -> None:
    shared.app.seen.clear()
    (answer,) = shared.connect().send(get(target, CLOSE)).answers()
    assert answer.status == 200
    (scope,) = shared.app.seen
    assert (scope["path"], scope["query_string"]) == (path, query)


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"a",
        b"x:80",
        b"?q",
        b"/a#b",
        b"/a?b#c",
        b"http://x#a",
        b"http://",
        b"http:///a",
        b"http://user@x/",
        b"http://user:secret@x/",
        b"http://x:port/",
        b"http://" + b"x" * 300 + b"/",
        b"ftp://x/",
        b"/%ff",
        b"/%c3?q",
        b"http://x/%ff",
    ],
)
def test_any_other_target_is_refused(shared: Served, target: bytes) -> None:
    (answer,) = shared.connect().send(get(target)).answers()
    assert (answer.status, answer.problem) == (400, "bad-request")


def test_a_head_request_is_refused_without_a_body(shared: Served) -> None:
    client = shared.connect().send(b"HEAD /a%ff HTTP/1.1\r\n" + HOST + b"\r\n")
    head, _, body = client.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-length" in head.lower()
    assert body == b""


@pytest.mark.parametrize("line", [b"\0\0\r\n", b"GE\tT / HTTP/1.1\r\n", b"get / HTTP/1.1\r\n"])
def test_what_is_no_request_is_answered_with_a_body_behind_a_head_request(
    shared: Served, line: bytes
) -> None:
    client = shared.connect().send(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n" + line)
    _, _, answer = client.read().partition(b"\r\n\r\n")
    assert b"application/problem+json" in answer
    assert answer.endswith(b"}")


@pytest.mark.parametrize(
    ("sent", "instance"),
    [
        (get(b"/a%ff?b"), "/a%ff"),
        (get(b"/a#b"), "/a%23b"),
        (get(b"http://evil.example.com/orders?b"), "/orders"),
        (get(b"http://evil.example.com"), "/"),
        (get(b"/" + b"x" * MAX_TARGET), "/" + "x" * 199),
        (get(b"/orders", b"Host: y\r\n"), "/orders"),
        (get(b"/orders", b"X: y\r\n" * MAX_HEADERS), "/orders"),
        (get(b"/orders", b"Transfer-Encoding: br\r\n"), "/orders"),
        (b"PROPFIND /orders HTTP/1.1\r\n" + HOST + b"\r\n", "/orders"),
        (b"BREW /orders?a HTTP/1.1\r\n" + HOST + b"\r\n", "/orders"),
        (get(b"*"), ""),
        (b"GET /ord", ""),
        (b"hello\r\n\r\n", ""),
    ],
)
@pytest.mark.parametrize("first", [b"", get(b"/other")])
def test_a_refusal_names_the_path_if_it_is_known(first: bytes, sent: bytes, instance: str) -> None:
    with served(local_host) as running:
        *_, answer = running.connect().send(first + sent).send_end().answers()
        assert answer.problem
        assert answer.instance == instance


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (b"/a%ff", b""),
        (b"/", b"Transfer-Encoding: br\r\n"),
        (b"/", b"X: y\r\n" * MAX_HEADERS),
        (b"/fail", b""),
    ],
)
def test_a_refusal_has_the_id_of_its_request(shared: Served, path: bytes, headers: bytes) -> None:
    first = get(headers=b"X-Request-Id: another\r\n")
    sent = get(path, b"X-Request-Id: mine\r\n" + headers)
    *_, answer = shared.connect().send(first + sent).answers()
    assert answer.problem
    assert answer.headers["x-request-id"] == "mine"
    *_, answer = shared.connect().send(first + b"BREW / HTTP/1.1\r\n").answers()
    assert answer.problem == "unknown-method"
    assert len(answer.headers["x-request-id"]) == 32


def test_an_error_of_the_application_names_the_path(shared: Served) -> None:
    (answer,) = shared.connect().send(get(b"/fail")).answers()
    assert answer.problem == "internal-error"
    assert answer.instance == "/fail"


def test_options_of_the_server_are_asked_for_by_an_asterisk(shared: Served) -> None:
    client = shared.connect().send(b"OPTIONS * HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
    assert client.answers()[0].status == 200


def test_the_host_of_a_target_is_the_one_that_counts() -> None:
    with served(local_host) as running:
        (answer,) = running.connect().send(get(b"http://evil.example.com/", CLOSE)).answers()
        assert answer.problem == "misdirected-host"


def test_an_error_of_the_application_is_a_problem(shared: Served) -> None:
    (answer,) = shared.connect().send(get(b"/fail")).answers()
    assert (answer.status, answer.problem) == (500, "internal-error")


def test_an_answer_that_fails_half_way_ends_with_a_reset(shared: Served) -> None:
    with pytest.raises(ConnectionResetError):
        shared.connect().send(post(path=b"/half")).read()


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        (b"127.0.0.1:8000", True),
        (b"[::1]:8000", True),
        (b"localhost", True),
        (b"API.LOCALHOST.:80", True),
        (b"api", True),
        (b"evil.example.com", False),
        (b"127.0.0.1.evil.example", False),
        (b"127.0.0.1.nip.io:8000", False),
    ],
)
def test_a_host_that_a_web_page_can_have_is_refused_where_no_keys_are_asked_for(
    host: bytes, allowed: bool
) -> None:
    with served(local_host) as running:
        request = b"GET / HTTP/1.1\r\n" + CLOSE + b"Host: %b\r\n\r\n" % host
        (answer,) = running.connect().send(request).answers()
        assert (answer.status == 200) is allowed
        assert allowed or answer.problem == "misdirected-host"


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"TLS/1.2", b"anything"])
@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
def test_a_request_to_upgrade_is_one_like_any_other(
    shared: Served, upgrade: bytes, framing: str
) -> None:
    hidden = get(b"/hidden")
    head = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % upgrade
    if framing == "length":
        sent = post(hidden, headers=head)
    elif framing == "chunked":
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
        sent = b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + head + b"\r\n" + chunk
    else:
        sent, hidden = get(headers=head), b""
    for pause in (False, True):
        client = shared.connect()
        if pause:
            start, _, rest = sent.partition(b"\r\n\r\n")
            client.send(start + b"\r\n\r\n")
            shared.run(asyncio.sleep(0.01))
            client.send(rest)
        else:
            client.send(sent)
        first, second = client.send(post(b"next", headers=CLOSE)).answers()
        assert echoed(first.body) == hidden.decode()
        assert echoed(second.body) == "next"


def test_many_requests_to_upgrade_are_parsed_where_they_are(server: Served) -> None:
    """To copy what is left for each of them would be quadratic in what one client sends."""
    inputs: list[bytes] = []
    app = server.server.connections.app

    async def seen(scope: Scope, receive: Receive, send: Send) -> None:
        (one,) = server.server.connections.open
        inputs.append(one._input)
        await app(scope, receive, send)

    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    client = server.connect().send(get(b"/wait"))
    server.wait_for(lambda: len(server.app.seen) == 1, "the first request is served")
    client.send(get(headers=upgrade) * 1000)
    server.server.connections.app = seen
    server.call(server.app.gate.set)
    assert len(client.send_end().answers()) == 1001
    assert len(inputs) == 1000
    assert len({id(one) for one in inputs}) < 20


def test_a_request_with_a_trailer_is_served_without_its_fields(shared: Served) -> None:
    shared.app.seen.clear()
    trailer = b"Authorization: Bearer x\r\nIdempotency-Key: k\r\nContent-Encoding: br\r\n"
    sent = b"POST / HTTP/1.1\r\n" + HOST + CLOSE + CHUNKED + b"\r\n4\r\nbody\r\n0\r\n" + trailer
    (answer,) = shared.connect().send(sent + b"\r\n").answers()
    assert echoed(answer.body) == "body"
    (scope,) = shared.app.seen
    assert {name for name, _ in scope["headers"]} == {b"host", b"connection", b"transfer-encoding"}


@pytest.mark.parametrize("path", [b"/", b"/early"])
@pytest.mark.parametrize(
    "flood", [b"0\r\n" + b"x: y\r\n" * MAX_FRAMING, b"1;" + b"e" * MAX_FRAMING * 6]
)
def test_what_is_around_a_chunked_body_is_bounded(
    shared: Served, path: bytes, flood: bytes
) -> None:
    client = shared.connect()
    client.send(b"POST %b HTTP/1.1\r\n" % path + HOST + CHUNKED + b"\r\n")
    if path == b"/early":
        assert client.read_answer().status == 200
    # The server may hang up in the middle of it.
    try:
        received = client.send(flood * 4).read()
    except (ConnectionResetError, BrokenPipeError):
        return
    if path != b"/early":
        assert parse_answers(received)[0].problem == "head-too-large"


def test_a_body_in_tiny_chunks_is_taken(shared: Served) -> None:
    body = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    sent = b"POST / HTTP/1.1\r\n" + HOST + CLOSE + CHUNKED + b"\r\n" + body
    (answer,) = shared.connect().send(sent).answers()
    assert echoed(answer.body) == "x" * 20_000


def test_a_chunked_body_larger_than_what_is_read_ahead_is_whole(shared: Served) -> None:
    body = b"1\r\ny\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (200_000, b"z" * 200_000)
    sent = b"POST / HTTP/1.1\r\n" + HOST + CLOSE + CHUNKED + b"\r\n" + body
    (answer,) = shared.connect().send(sent).answers()
    assert echoed(answer.body) == "y" + "z" * 200_000


def test_a_client_that_waits_for_100_continue_gets_it_or_the_end(shared: Served) -> None:
    head = b"POST %b HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    client = shared.connect().send(head % b"/")
    assert client.read_answer().status == 100
    client.send(b"body")
    assert echoed(client.read_answer().body) == "body"
    (answer,) = client.send(head % b"/early").answers()
    assert answer.headers["connection"] == "close"
    # Who sends the body at once is not told to.
    (answer,) = shared.connect().send(head % b"/" + b"body").send_end().answers()
    assert echoed(answer.body) == "body"


@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_that_shuts_down_its_side_gets_its_answers(server: Served, at_once: bool) -> None:
    client = server.connect().send(post() + post(b"slow", b"/wait"))
    if at_once:
        client.send_end()
    server.wait_for(lambda: len(server.app.seen) == 2, "both requests are served")
    if not at_once:
        client.send_end()
    server.call(server.app.gate.set)
    assert [echoed(answer.body) for answer in client.answers()] == ["body", "slow"]


@pytest.mark.parametrize("behind", [b"", get(CLOSE) * 10, b"\r\n", b"GET /half"])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_answer_without_an_end_ends_when_the_client_sends_no_more(
    server: Served, version: bytes, at_once: bool, behind: bytes
) -> None:
    """Nobody could tell who has shut down one side from who has gone."""
    client = server.connect().send(b"GET /endless HTTP/%b\r\n" % version + HOST + b"\r\n")
    if not at_once:
        assert client.socket.recv(8)
        server.wait_for(lambda: len(server.app.seen) == 1, "it is served")
        server.run(asyncio.sleep(0.05))
    received = client.send(behind).send_end().read()
    assert received.partition(b"last")[1]
    server.wait_for(lambda: not server.server.connections.open, "it is gone")


def test_many_streams_that_are_closed_at_one_moment_are_gone_at_once(server: Served) -> None:
    for _ in range(2):
        clients = [server.connect().send(get(b"/endless")) for _ in range(100)]
        for client in clients:
            assert client.socket.recv(1 << 16)
        for client in clients:
            client.socket.close()
        server.wait_for(lambda: not server.server.connections.open, "all are gone")


def test_what_is_sent_behind_an_answer_without_an_end_is_bounded(server: Served) -> None:
    client = server.connect().send(get(b"/endless"))
    assert client.socket.recv(1 << 16)
    client.socket.settimeout(0.3)
    with suppress(TimeoutError):
        client.send(get() * 1_000_000)
    (one,) = server.server.connections.open
    assert len(one._input) < 1 << 20
    assert len(server.app.seen) == 1


@pytest.mark.parametrize("sent", [post()[:-1], post()[:-10], b"GE"])
def test_half_a_request_and_its_end_are_refused(shared: Served, sent: bytes) -> None:
    (answer,) = shared.connect().send(sent).send_end().answers()
    assert answer.problem == "bad-request"
    assert "ended early" in str(answer.body)


def test_http_1_0_gets_no_chunks_and_the_end_where_a_length_is_missing(shared: Served) -> None:
    (answer,) = shared.connect().send(b"GET /stream HTTP/1.0\r\n\r\n").answers()
    assert "transfer-encoding" not in answer.headers
    assert answer.body == b"part part part "
    (answer,) = shared.connect().send(get(b"/stream", CLOSE)).answers()
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.body == b"part part part "
    client = shared.connect().send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert client.read_answer().headers["connection"] == "keep-alive"
    (answer,) = client.send(b"GET / HTTP/1.0\r\n\r\n").answers()
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("cut", [0, 1, 7, 10, 40])
def test_pipelined_requests_are_all_answered_wherever_a_segment_ends(
    shared: Served, cut: int
) -> None:
    requests = get() * 1500 + post(b"last", headers=CLOSE)
    client = shared.connect().send(requests[: len(requests) - cut])
    if cut:
        client.send(requests[len(requests) - cut :])
    answers = client.answers()
    assert len(answers) == 1501
    assert echoed(answers[-1].body) == "last"


def test_requests_sent_byte_by_byte_are_answered(shared: Served) -> None:
    client = shared.connect()
    chunked = b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n3\r\none\r\n0\r\nt: u\r\n\r\n"
    for byte in chunked + post(b"two") + post(b"three", headers=CLOSE):
        client.send(bytes([byte]))
    assert [echoed(answer.body) for answer in client.answers()] == ["one", "two", "three"]


def test_a_pipelining_client_holds_bytes_and_no_requests(server: Served) -> None:
    client = server.connect().send(get(b"/wait"))
    server.wait_for(lambda: len(server.app.seen) == 1, "the first request is served")
    client.send(get() * 1000)
    server.run(asyncio.sleep(0.05))
    assert len(server.app.seen) == 1
    server.call(server.app.gate.set)
    client.send_end()
    assert len(client.answers()) == 1001


def test_who_pipelines_most_for_the_longest_time_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "MAX_UNPARSED", 100_000)
    with served() as server:
        clients = []
        for _ in range(3):
            clients.append(server.connect().send(get(b"/wait") + get() * 1500))
            server.wait_for(lambda: len(server.app.seen) == len(clients), "it is served")
        server.call(server.app.gate.set)
        with pytest.raises(ConnectionResetError):
            clients[0].read()
        assert len(clients[2].send_end().answers()) == 1501


def test_uploads_are_bounded_together_and_orders_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_UPLOADS", 100_000)
    with served() as server:
        head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n"
        uploads = [server.connect().send(head + b"x" * 30_000) for _ in range(4)]
        server.wait_for(lambda: len(server.app.seen) == 4, "all are here")
        with pytest.raises(ConnectionResetError):
            uploads[0].read()
        (answer,) = server.connect().send(post(headers=CLOSE)).answers()
        assert answer.status == 200


class TestDeadlines:
    """Every state of a connection ends."""

    @pytest.fixture(autouse=True)
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("KEEP_ALIVE_S", "HEAD_TIMEOUT_S", "DISCARD_TIMEOUT_S", "LINGER_S"):
            monkeypatch.setattr(connection, name, SHORT_S)
        monkeypatch.setattr(connection, "WRITE_TIMEOUT_S", SHORT_S)
        monkeypatch.setattr("api.server.SWEEP_S", 0.05)

    @pytest.mark.parametrize("sent", [b"", b"GET", get()[:-2], b"\r\n"])
    def test_a_head_that_does_not_come_is_refused(self, server: Served, sent: bytes) -> None:
        (answer,) = server.connect().send(sent).answers()
        assert (answer.status, answer.problem) == (408, "head-too-slow")

    @pytest.mark.parametrize("sent", [b"G", get()[:-2]])
    def test_a_part_of_a_next_request_does_not_keep_a_connection(
        self, server: Served, sent: bytes
    ) -> None:
        _, answer = server.connect().send(get() + sent).answers()
        assert answer.problem == "head-too-slow"

    @pytest.mark.parametrize("sent", [b"", b"\r\n"])
    def test_an_idle_connection_is_closed(self, server: Served, sent: bytes) -> None:
        client = server.connect().send(get())
        client.read_answer()
        client.send(sent)
        assert client.read() == b""

    def test_a_drip_of_blank_lines_does_not_keep_a_connection(self, server: Served) -> None:
        client = server.connect().send(get())
        client.read_answer()
        until = time.monotonic() + 20 * SHORT_S
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012
            while time.monotonic() < until:
                client.send(b"\r\n")
                server.run(asyncio.sleep(0.01))

    @pytest.mark.parametrize("framing", [b"Content-Length: 60\r\n", CHUNKED])
    @pytest.mark.parametrize("rest", [b"", b"1", b"1\r\nx\r\n0\r\nt: u\r\n"])
    def test_the_rest_of_a_body_that_nobody_reads_does_not_keep_a_connection(
        self, server: Served, framing: bytes, rest: bytes
    ) -> None:
        head = b"POST /early HTTP/1.1\r\n" + HOST + framing + b"\r\n"
        (answer,) = server.connect().send(head + rest).answers()
        assert answer.status == 200

    def test_an_unread_body_that_comes_in_time_costs_no_connection(self, server: Served) -> None:
        client = server.connect().send(post(b"x" * 100_000, b"/early"))
        assert client.read_answer().status == 200
        (answer,) = client.send(post(headers=CLOSE)).answers()
        assert echoed(answer.body) == "body"

    def test_an_unread_body_without_end_is_cut_off(self, server: Served) -> None:
        head = b"POST /early HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n"
        client = server.connect().send(head)
        assert client.read_answer().status == 200
        chunk = b"%x\r\n%b\r\n" % (1 << 16, b"x" * (1 << 16))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.send(chunk * (2 * MAX_DISCARD // len(chunk) + 100))

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    def test_a_client_that_sends_before_it_reads_is_told_that_it_sends_too_much(
        self, server: Served, framing: str
    ) -> None:
        """The connection must not be reset meanwhile, and the answer with it."""
        body = b"x" * (3 * MAX_DISCARD // 4)
        if framing == "length":
            sent = post(body, b"/refuse")
        else:
            head = b"POST /refuse HTTP/1.1\r\n" + HOST + CHUNKED
            sent = head + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        (answer,) = server.connect().send(sent).answers()
        assert answer.status == 200

    @pytest.mark.parametrize("half_head", [False, True])
    def test_what_is_sent_behind_a_slowly_taken_answer_has_its_time_after_it(
        self, server: Served, monkeypatch: pytest.MonkeyPatch, *, half_head: bool
    ) -> None:
        monkeypatch.setattr(connection, "WRITE_TIMEOUT_S", 60)
        ended = connection.ENDED.labels("slow-head")
        before = ended._value.get()
        first = b"POST /large?1000000 HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n0\r\n\r\n"
        rest = b"GET / HT" if half_head else get(headers=CLOSE)
        client = server.connect(receive_buffer=4096).send(first + rest)
        server.wait_for(lambda: len(server.server.connections.open) == 1, "it is open")
        (one,) = server.server.connections.open
        server.wait_for(lambda: one._current is None and one.is_full, "it is answered")
        server.wait_for(lambda: one.deadline == connection.FOREVER, "its time is over")
        server.run(asyncio.sleep(0.2))
        large, last = client.answers()
        assert len(large.body) == 1_000_000
        assert last.status == (408 if half_head else 200)
        assert ended._value.get() - before == half_head
        server.wait_for(lambda: not server.server.connections.open, "it is gone")

    def test_a_client_that_takes_nothing_is_reset(
        self, server: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "MIN_WRITE_RATE", 1 << 30)
        client = server.connect(receive_buffer=4096).send(get(b"/large?4000000", CLOSE))
        server.wait_for(lambda: len(server.server.connections.open) == 1, "it is open")
        server.wait_for(lambda: not server.server.connections.open, "it was ended")
        with pytest.raises(ConnectionResetError):
            client.read()

    def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(self, server: Served) -> None:
        client = server.connect(receive_buffer=4096).send(get(b"/large?400000", CLOSE))
        received = b""
        while part := client.socket.recv(20_000):
            received += part
            server.run(asyncio.sleep(0.02))
        assert len(parse_answers(received)[0].body) == 400_000

    def test_answers_that_nobody_takes_are_bounded_together(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "WRITE_TIMEOUT_S", 60)
        monkeypatch.setattr(connection, "MAX_UNSENT", 8_000_000)
        with served() as server:
            clients = []
            for _ in range(4):
                clients.append(server.connect(receive_buffer=4096).send(get(b"/large?4000000")))
                server.wait_for(lambda: len(server.app.seen) == len(clients), "it is served")
            with pytest.raises(ConnectionResetError):
                clients[0].read()
            assert len(clients[3].send_end().answers()[0].body) == 4_000_000


def test_a_client_who_takes_no_answers_gets_no_more_requests_served(server: Served) -> None:
    client = server.connect().send(get(b"/large?1000000") * 20)
    server.wait_for(lambda: len(server.app.seen) >= 1, "it is served")
    server.run(asyncio.sleep(0.1))
    assert len(server.app.seen) < 4
    assert len(client.send_end().answers()) == 20


def test_new_clients_are_taken_in_though_all_connections_are_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served() as server:
        monkeypatch.setattr(server.server, "_max_connections", 20)
        idle = [server.connect().send(get()) for _ in range(10)]
        for client in idle:
            client.read_answer()
        for _ in range(10):
            server.connect().send(b"GET")
        busy = server.connect().send(get(b"/wait"))
        server.wait_for(lambda: len(server.app.seen) == 11, "the new one is served")
        for _ in range(40):
            (answer,) = server.connect().send(get(headers=CLOSE)).answers()
            assert answer.status == 200
        server.call(server.app.gate.set)
        assert busy.read_answer().status == 200


def test_who_still_takes_an_answer_is_the_last_to_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served() as server:
        monkeypatch.setattr(server.server, "_max_connections", 20)
        # Of the answer some is in the kernel, and nothing with us.
        taking = server.connect(receive_buffer=4096).send(get(b"/large?100000"))
        server.wait_for(lambda: len(server.app.seen) == 1, "it is answered")
        idle = [server.connect().send(get()) for _ in range(19)]
        for client in idle:
            client.read_answer()
        for _ in range(5):
            assert server.connect().send(get()).read_answer().status == 200
        assert len(taking.send_end().answers()[0].body) == 100_000
        # Who had all sees the end, and no error.
        for client in idle:
            client.socket.setblocking(False)
            with suppress(BlockingIOError):
                assert client.read() == b""


def test_who_takes_nothing_makes_room_where_nobody_else_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served() as server:
        monkeypatch.setattr(server.server, "_max_connections", 1)
        taking = server.connect(receive_buffer=4096).send(get(b"/large?100000"))
        server.wait_for(lambda: len(server.app.seen) == 1, "it is answered")
        assert server.connect().send(get()).read_answer().status == 200
        with pytest.raises(ConnectionResetError):
            taking.read()


def test_clients_that_come_together_are_taken_in_together(server: Served) -> None:
    """Not one in a turn of the loop: a turn is long where many are served."""
    turns = 0
    done = False

    def count_turn() -> None:
        nonlocal turns
        turns += 1
        if not done:
            asyncio.get_running_loop().call_soon(count_turn)

    server.call(time.sleep, 0.3)
    clients = [server.connect().send(get(b"/wait")) for _ in range(100)]
    server.call(count_turn)
    server.wait_for(lambda: len(server.app.seen) == 100, "all are served")
    served_after = turns
    done = True
    server.call(server.app.gate.set)
    assert all(client.read_answer().status == 200 for client in clients)
    assert served_after < 10_000


def test_a_server_that_stops_answers_what_is_under_way_and_no_more(server: Served) -> None:
    idle, busy = server.connect().send(get()), server.connect()
    idle.read_answer()
    busy.send(get(b"/wait") + get())
    server.wait_for(lambda: len(server.app.seen) == 2, "both are served")
    server.call(server.server.stop)
    assert idle.read() == b""
    with pytest.raises(ConnectionRefusedError):
        server.wait_for(lambda: bool(server.connect().socket.close()), "nobody listens")
    server.call(server.app.gate.set)
    (answer,) = busy.answers()
    assert answer.headers["connection"] == "close"


async def test_a_port_that_is_taken_is_named() -> None:
    with served() as server, pytest.raises(CannotListen, match=f"port {server.port} of 127.0.0.1"):
        Server(server.app, "127.0.0.1", server.port)

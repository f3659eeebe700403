"""nginx with the configuration of deploy/nginx.conf, on free ports, in a directory of its own."""

import grp
import json
import os
import pwd
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import httpx

from tests.harness import DEADLINE_S, free_port
from tests.packages import require_program
from tests.private_servers import MARK, wait_until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"
NAME = "ledger.example.com"

# One process, which ends with the servers of the suite at the latest. All files are in its prefix.
MAIN = """
daemon off;
master_process off;
user {user} {group};
pid {prefix}/nginx.pid;
error_log {prefix}/error.log info;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    include {prefix}/ledger.conf;
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A running nginx."""

    port: int
    prefix: Path

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"https://{NAME}:{self.port}"

    @property
    def context(self) -> ssl.SSLContext:
        """TLS that trusts its certificate and no other."""
        return ssl.create_default_context(cafile=str(self.prefix / "cert.pem"))

    def client(self, address: str = "127.0.0.1") -> httpx.AsyncClient:
        """A client of HTTP/1.1 that comes from this address of the loopback interface."""
        transport = httpx.AsyncHTTPTransport(verify=self.context, local_address=address)
        return httpx.AsyncClient(
            transport=transport,
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"Host": NAME},
            timeout=DEADLINE_S,
            event_hooks={"request": [_name_server]},
        )

    def connect(self, address: str = "127.0.0.1") -> ssl.SSLSocket:
        """A connection over TLS from this address, to speak HTTP/1.1 by hand."""
        plain = socket.create_connection(("127.0.0.1", self.port), DEADLINE_S, (address, 0))
        return self.context.wrap_socket(plain, server_hostname=NAME)

    def curl(self, *arguments: str) -> list[str]:
        """The command of a curl that speaks HTTP/2 with it."""
        return [
            *(require_program("curl"), "--silent", "--no-buffer", "--http2"),
            *("--max-time", f"{DEADLINE_S:.0f}", "--cacert", str(self.prefix / "cert.pem")),
            *("--resolve", f"{NAME}:{self.port}:127.0.0.1", *arguments),
        ]

    def log(self) -> list[dict[str, object]]:
        """Its access log."""
        return [json.loads(line) for line in (self.prefix / "access.log").read_text().splitlines()]


async def _name_server(request: httpx.Request) -> None:
    request.extensions["sni_hostname"] = NAME


def _replace_once(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old} must stand once in {CONFIGURATION}"
    return text.replace(old, new)


@contextmanager
def running_nginx(prefix: Path, home: Path, upstream_port: int) -> Iterator[Proxy]:
    """nginx in front of an API, with only the lines changed that the configuration says to change.

    Raises StackRefused where nginx is missing and can't be installed.
    """
    nginx, openssl = require_program("nginx"), require_program("openssl")
    prefix.mkdir()
    port = free_port()
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={NAME}"),
            *("-addext", f"subjectAltName=DNS:{NAME}"),
            *("-keyout", str(prefix / "key.pem"), "-out", str(prefix / "cert.pem")),
        ],
        check=True,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    text = CONFIGURATION.read_text()
    for old, new in (
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream_port};"),
        ("listen 443 ssl http2 default_server;", f"listen 127.0.0.1:{port} ssl http2 default;"),
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;"),
        ("/etc/ssl/ledger/fullchain.pem", str(prefix / "cert.pem")),
        ("/etc/ssl/ledger/privkey.pem", str(prefix / "key.pem")),
        ("/var/log/nginx/ledger.log", str(prefix / "access.log")),
    ):
        text = _replace_once(text, old, new)
    (prefix / "ledger.conf").write_text(text)
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    (prefix / "main.conf").write_text(MAIN.format(prefix=prefix, user=user, group=group))
    log = prefix / "error.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [nginx, "-p", str(prefix), "-c", str(prefix / "main.conf"), "-e", str(log)],
            env={**os.environ, MARK: str(home)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(is_up, DEADLINE_S, f"nginx does not listen: see {log}")
        yield Proxy(port, prefix)
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


class Upstream:
    """What stands where the API would: each connection's bytes are here, and answered on demand."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.requests: Queue[tuple[socket.socket, bytes]] = Queue()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._read, args=(connection,)))
                self._threads[-1].start()

    def _read(self, connection: socket.socket) -> None:
        data = b""
        with suppress(OSError):
            while part := connection.recv(1 << 16):
                data += part
                head, end, body = data.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                if end and len(body) >= length:
                    self.requests.put((connection, data))
                    data = b""

    def next(self) -> tuple[socket.socket, bytes]:
        """The next whole request, and the connection on which it came."""
        return self.requests.get(timeout=DEADLINE_S)

    def close(self) -> None:
        """Listen no more, and hang up on everybody."""
        for opened in (self.listener, *self._connections):
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for opened in (self.listener, *self._connections):
            opened.close()

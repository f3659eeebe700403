"""The warm process: imports every command, then forks for each one that it is asked to run."""

import json
import os
import signal
import socket
import sys

from cli.main import COMMANDS, app, load


def serve(path: str) -> None:
    """Answer each connection with the exit status of one command, negative for a signal."""
    for target, _ in COMMANDS.values():
        load(target)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    answer(connection)


def answer(connection: socket.socket) -> None:
    """Run the command of a request in one more process, and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile("rwb") as stream:
        request = json.loads(stream.readline())
        child = os.fork()
        if child == 0:
            run(request)
        _, status = os.waitpid(child, 0)
        stream.write(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def run(request: dict[str, object]) -> None:
    """Become the command: its arguments, environment, directory and standard files."""
    signal.alarm(int(str(request["timeout_s"])))
    os.chdir(str(request["directory"]))
    environ = request["environ"]
    assert isinstance(environ, dict)
    os.environ.clear()
    os.environ.update(environ)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(str(request[name]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    arguments = request["arguments"]
    assert isinstance(arguments, list)
    app(arguments, prog_name="ledger")  # exits


if __name__ == "__main__":
    serve(sys.argv[1])

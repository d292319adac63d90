"""Real processes to kill that start at once: a server imports the package and forks a child a request.

Importing torch and Lightning takes seconds, and twenty kills need twenty processes. The server itself computes nothing:
its children are as fresh as a new interpreter.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A process that runs some code; `out` and `err` are what it has printed."""

    def __init__(self, server, folder, code):
        self.server, self.folder = server, Path(folder)
        self.pid = server.ask(op="start", folder=str(folder), code=code)

    def wait(self, timeout=900.0):
        """Exit status, minus the signal's number if one ended it; None if it still runs after `timeout` seconds."""
        return self.server.ask(op="wait", pid=self.pid, timeout=timeout)

    def send(self, number):
        """Send a signal."""
        os.kill(self.pid, number)

    def after(self, seconds, number=None):
        """Send a signal in `seconds` unless it has ended by then; its exit status."""
        status = self.wait(seconds)
        if status is None:
            self.send(number or signal.SIGKILL)
            status = self.wait()
        return status

    @property
    def out(self):
        return (self.folder / f"{self.pid}.out").read_text()

    @property
    def err(self):
        return (self.folder / f"{self.pid}.err").read_text()


class Forks:
    """The server."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, folder, code):
        return Child(self, folder, code)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve():
    """Answer requests, a line of JSON each, until the input ends."""
    on_a_runs_way = ("segmentation_models_pytorch", "skimage.data", "skimage.io", "imageio.v3")
    for name in ("ablations.commands.run", *on_a_runs_way):
        importlib.import_module(name)
    answers = {"start": start, "wait": wait}
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answers[request.pop("op")](**request)), flush=True)


def start(folder, code):
    """Fork a child that runs `code` in `folder`; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{os.getpid()}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        exec(code, {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid, timeout):
    """Exit status of a child, None if it has none in time."""
    deadline = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.002)


if __name__ == "__main__":
    serve()

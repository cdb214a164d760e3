"""A worker in a process of its own, for scripts that tests run: there `__main__` is another module."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from rush_executor._payload import Encoder

ROOT = Path(__file__).parents[3]


class Worker:
    """Does calls in another process, one after the other."""

    def __init__(self, client_id: str = "c") -> None:
        self.encoder = Encoder("test")
        self._client_id = client_id
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.payload.worker_process"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()
        self._process.wait()

    def encode(self, fn: Any, *args: Any, **kwargs: Any) -> tuple[bytes, dict[str, bytes]]:
        """A call, to be sent later."""
        function = self.encoder.encode_function(fn)
        bodies = {} if function.digest is None else {function.digest: function.body or b""}
        return self.encoder.encode_call("t", function, args, kwargs), bodies

    def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """A call there and back; a failure is raised."""
        return self.send(*self.encode(fn, *args, **kwargs))

    def initialize(self, fn: Any, *initargs: Any) -> None:
        """Runs an initializer."""
        self.send(self.encoder.encode_initializer(fn, initargs), {}, "initializer")

    def send(self, payload: bytes, bodies: dict[str, bytes], kind: str = "call") -> Any:
        """Sends a payload; what comes back is returned or raised."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((kind, self._client_id, payload, bodies), self._process.stdin)
        self._process.stdin.flush()
        state, body = pickle.load(self._process.stdout)
        if state == "failed":
            raise self.encoder.decode_failure("t", body)
        return self.encoder.decode_outcome("t", "finished", body)


def run_script(folder: Path, source: str) -> str:
    """Runs source as a script by path; an assertion in it that fails is the test's failure.

    Returns:
        What the script printed.
    """
    script = folder / "script.py"
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

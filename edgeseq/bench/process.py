"""Starting processes that find edgeseq where this one found it, and a worker that answers requests."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import edgeseq
from edgeseq.errors import ConfigError

# Behind the interpreter's own packages: a peer's environment must not see ours first.
_START = "import sys; sys.path.append(sys.argv.pop(1)); from {} import main; main()"
_ROOT = str(Path(edgeseq.__file__).parent.parent)
_PATIENCE_S = 5.0


def command(python: str, module: str, *arguments: str) -> list[str]:
    """The command line that runs ``main()`` of one of our modules in another interpreter."""
    return [python, "-c", _START.format(module), _ROOT, *arguments]


class Worker:
    """A process of ``edgeseq.bench.worker``. Use it as a context manager: leaving it ends the process.

    Raises:
        ConfigError: ``python`` cannot be run.
    """

    def __init__(self, python: str) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  close() does
        try:
            self._process = subprocess.Popen(
                command(python, "edgeseq.bench.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._errors.close()
            raise ConfigError(f"cannot run {python!r}: {error.strerror}; give the path of an interpreter") from error

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request; {"failed": WHY} if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"failed": f"its process ended with status {self._process.wait()}: {self._last_words()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else "(it said nothing)"

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        try:
            self._process.communicate(timeout=_PATIENCE_S)  # closes its standard input, at which it ends
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""``python -m edgeseq`` and the ``edgeseq`` command: starts the command line, or says what it needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on these arguments, or on the process's own.

    Exit status 1 after an error of edgeseq's own; its message goes to stderr.
    """
    try:
        from edgeseq.cli import app
    except ImportError as error:
        sys.exit(f'edgeseq: the command line needs {error.name!r}; install it with pip install "edgeseq[cli]"')
    from edgeseq.errors import EdgeseqError

    try:
        app(sys.argv[1:] if arguments is None else arguments)
    except EdgeseqError as error:
        sys.exit(f"edgeseq: {error}")


if __name__ == "__main__":
    main()

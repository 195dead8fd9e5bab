"""All rows of the interleaved run by key. Our own are imported where they are asked for: peers run elsewhere, too."""

from __future__ import annotations

from edgeseq.bench.case import Case
from edgeseq.bench.peers import PEERS


def find(key: str) -> Case:
    """The case of this key, one of ``cases.OURS`` or ``peers.PEERS``."""
    if key in PEERS:
        return PEERS[key]
    from edgeseq.bench.cases import OURS

    return OURS[key]

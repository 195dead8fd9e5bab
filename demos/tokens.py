"""Python source as sequences of tokens, each name with what it is used for: data for a bidirectional tagger.

The sources are the standard library's own, so there is nothing to download. Names are all replaced by one symbol: what
a name is used for must be told from the tokens around it, some of which come after it. ``f`` in ``f(x)`` is a call
because of the token that follows, which makes this the opposite of a slowly changing sensor.

Owns the tokens, their vocabulary and the labels. Refuses nothing: files that the running Python does not parse are left
out. Invariant: a token that is not a name has the label ``IGNORED``.
"""

from __future__ import annotations

import ast
import io
import keyword
import sysconfig
import token
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LABELS = ("load", "call", "attribute", "parameter", "definition", "import", "target", "keyword argument", "other")
IGNORED = -1

_NAME, _OTHER = "NAME", "OTHER"
_WORDS = (_OTHER, _NAME, "NUMBER", "STRING", "NEWLINE", "INDENT", "DEDENT", *keyword.kwlist, *token.EXACT_TOKEN_TYPES)
VOCABULARY: dict[str, int] = {word: number for number, word in enumerate(_WORDS)}
_STRINGS = {"STRING", "FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"}  # f-strings are several tokens since 3.12
# Names that the syntax tree keeps without their places; what an import begins with decides for all of it.
_FIRST = {"import": "import", "from": "import"}
_BEFORE = {"def": "definition", "class": "definition"}
_LEFT_OUT = {"COMMENT", "NL", "ENCODING", "ENDMARKER"}

Place = tuple[int, int]
"""Line and column (in characters) where a token begins."""


@dataclass(frozen=True)
class TaggedSource:
    """One file: ``tokens`` and ``labels``, both (T,) int32; labels are numbers of ``LABELS`` or ``IGNORED``."""

    name: str
    tokens: NDArray[np.int32]
    labels: NDArray[np.int32]


def tag(source: str, name: str = "source") -> TaggedSource:
    """The tokens of a Python source and what each name in it is used for.

    Raises:
        SyntaxError: it is not Python.

    Example:
        >>> tagged = tag("y = f(x, key=z.a)")
        >>> [LABELS[i] for i in tagged.labels if i != IGNORED]
        ['target', 'call', 'load', 'keyword argument', 'load', 'attribute']
        >>> [_WORDS[i] for i in tagged.tokens[:5]]
        ['NAME', '=', 'NAME', '(', 'NAME']
    """
    uses = _uses(source)
    tokens: list[int] = []
    labels: list[int] = []
    first = before = ""  # of this statement, and the token before this one
    for each in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[each.type]
        if kind in _LEFT_OUT:
            continue
        is_name = kind == "NAME" and not keyword.iskeyword(each.string)
        word = _NAME if is_name else "STRING" if kind in _STRINGS else each.string if kind in {"NAME", "OP"} else kind
        use = (
            _FIRST.get(first)
            or _BEFORE.get(before)
            or uses.get(each.start)
            or ("target" if before == "as" else "other")
        )
        tokens.append(VOCABULARY.get(word, VOCABULARY[_OTHER]))
        labels.append(LABELS.index(use) if is_name else IGNORED)
        before = each.string
        begins = kind in {"NEWLINE", "INDENT", "DEDENT"} or each.string in {":", ";"}  # another statement may follow
        first = "" if begins else first or each.string
    return TaggedSource(name, np.array(tokens, np.int32), np.array(labels, np.int32))


def standard_library(n_files: int | None = None) -> list[TaggedSource]:
    """Files of the running Python's standard library, the packages' too, but for its tests; in the order of a hash.

    The order depends on the names alone, so a split of it is the same everywhere, and neighbours are not related.
    """
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted((_order(path), path) for path in (p.relative_to(root) for p in root.rglob("*.py")) if _is_code(path))
    tagged: list[TaggedSource] = []
    for _, path in names:
        if n_files is not None and len(tagged) == n_files:
            break
        try:
            found = tag((root / path).read_text(encoding="utf-8"), path.as_posix())
        except (SyntaxError, UnicodeDecodeError):
            continue
        if (found.labels != IGNORED).any():
            tagged.append(found)
    return tagged


def majority_rate(sources: Sequence[TaggedSource]) -> float:
    """The share of names whose use is the most frequent one: what guessing it each time scores."""
    labels = np.concatenate([source.labels for source in sources])
    counts = np.bincount(labels[labels != IGNORED])
    return float(counts.max() / counts.sum())


def _order(path: Path) -> int:
    """A number that mixes the characters of a name (FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/)."""
    number = 2166136261
    for byte in path.as_posix().encode():
        number = (number ^ byte) * 16777619 % 2**32
    return number


def _is_code(path: Path) -> bool:
    return not {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"} & set(path.parts)


def _uses(source: str) -> dict[Place, str]:
    """What each name is used for, by the place where it begins."""
    lines = source.split("\n")  # splitlines() would also part them at form feeds
    uses: dict[Place, str] = {}
    for node in ast.walk(ast.parse(source)):
        for (line, byte), use in _used_by(node):
            place = line, len(lines[line - 1].encode()[:byte].decode())  # ast counts bytes, tokenize characters
            if use == "call" or uses.get(place) != "call":  # a called name is visited twice
                uses[place] = use
    return uses


def _used_by(node: ast.AST) -> Iterator[tuple[Place, str]]:
    """Line and column (in bytes) of the names that a node itself holds, and their uses."""
    match node:
        case ast.Call(func=(ast.Name() | ast.Attribute()) as called):
            yield _last_name(called), "call"
        case ast.Name(ctx=ast.Load()):
            yield (node.lineno, node.col_offset), "load"
        case ast.Name():
            yield (node.lineno, node.col_offset), "target"
        case ast.Attribute():
            yield _last_name(node), "attribute"
        case ast.arg():
            yield (node.lineno, node.col_offset), "parameter"
        case ast.keyword(arg=str()):
            yield (node.lineno, node.col_offset), "keyword argument"


def _last_name(node: ast.Name | ast.Attribute) -> Place:
    """Where the name stands that a call or an attribute ends with."""
    if isinstance(node, ast.Name):
        return node.lineno, node.col_offset
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset - len(node.attr.encode())

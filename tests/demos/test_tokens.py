"""What each name is used for, in the corners of Python's syntax."""

from __future__ import annotations

import numpy as np
import pytest

from demos.tokens import IGNORED, LABELS, VOCABULARY, TaggedSource, majority_rate, standard_library, tag

WORDS = {number: word for word, number in VOCABULARY.items()}


def uses(source: str) -> list[str]:
    """The use of each name, in order."""
    return [LABELS[label] for label in tag(source).labels if label != IGNORED]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("f(x)", "call, load"),
        ("a.b.c", "load, attribute, attribute"),
        ("a.b.c(d)", "load, attribute, call, load"),
        ("f(g(x), h(y)(z))", "call, call, load, call, load, load"),
        ("a.f(b).g(c)", "load, call, load, call, load"),
        ("f()()", "call"),
        ("a[i].f(k=v)", "load, load, call, keyword argument, load"),
        ("x = y", "target, load"),
        ("x.y = z", "load, attribute, load"),
        ("x: int = y", "target, load, load"),
        ("x += 1", "target"),
        ("for i, j in k: pass", "target, target, load"),
        ("with f() as g: pass", "call, target"),
        ("try: pass\nexcept E as e: pass", "load, target"),
        ("(n := 3)", "target"),
        ("[i for i in x]", "load, target, load"),
        ("del x", "target"),
        ("def f(a, *b, c=d, **e): pass", "definition, parameter, parameter, parameter, load, parameter"),
        ("lambda a, b=c: a", "parameter, parameter, load, load"),
        ("class A(B, metaclass=M): pass", "definition, load, keyword argument, load"),
        ("@a.b(c)\ndef f(): pass", "load, call, load, definition"),
        ("@deco\nclass A: pass", "load, definition"),
        ("async def f(): await g()", "definition, call"),
        ("import a.b as c", "import, import, import"),
        ("from a import (\n    b as c,\n    d,\n)\ne", "import, import, import, import, load"),
        ("x = 1; import a", "target, import"),
        ("if x: from a import b", "load, import, import"),
        ("import a; b", "import, load"),
        ("from a import b  # c\nd[e:f]", "import, import, load, load, load"),
        ("é = ñ(ü.ß, κ=λ)", "target, call, load, attribute, keyword argument, load"),
        ("s = 'é'; f(x)", "target, call, load"),
        ("a = 1\n\x0c\nf(b)", "target, call, load"),
        ("f(\n    x,\n    y.z,\n)", "call, load, load, attribute"),
        ("global x", "other"),
    ],
)
def test_the_use_of_each_name(source: str, expected: str) -> None:
    assert uses(source) == expected.split(", ")


def test_names_are_one_symbol_and_only_they_have_labels() -> None:
    tagged = tag("def f(x):  # a comment\n    return x + 1 if 'é' else None\n")
    words = [WORDS[token] for token in tagged.tokens.tolist()]
    assert words[:7] == ["def", "NAME", "(", "NAME", ")", ":", "NEWLINE"]
    assert words[7:] == [
        *("INDENT", "return", "NAME", "+", "NUMBER", "if", "STRING", "else", "None", "NEWLINE", "DEDENT")
    ]
    assert [label != IGNORED for label in tagged.labels] == [word == "NAME" for word in words]
    assert tagged.tokens.dtype == tagged.labels.dtype == np.int32


def test_what_is_not_python_is_refused() -> None:
    with pytest.raises(SyntaxError):
        tag("def f(:")


def test_every_label_occurs_in_the_standard_library_and_its_order_is_fixed() -> None:
    sources = standard_library(25)
    assert len(sources) == 25
    seen = np.unique(np.concatenate([source.labels for source in sources]))
    assert seen.tolist() == [IGNORED, *range(len(LABELS))]
    assert [source.name for source in standard_library(3)] == [source.name for source in sources[:3]]
    assert not any("test" in source.name.split("/") for source in sources)
    assert all(source.tokens.min() >= 0 and source.tokens.max() < len(VOCABULARY) for source in sources)
    assert 0.3 < majority_rate(sources) < 0.6


def test_the_majority_counts_names_alone() -> None:
    labels = np.array([IGNORED, IGNORED, IGNORED, 0, 0, 1], np.int32)
    assert majority_rate([TaggedSource("s", labels, labels)]) == 2 / 3

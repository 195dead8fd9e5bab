from __future__ import annotations

import pytest

from edgeseq.errors import ConfigError
from edgeseq.runtime.serve.access import Access

TOKEN = "a-token-of-some-length"
HERE = {"Host": "127.0.0.1:8765"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="token_urlsafe"):
        Access(host, None)
    assert Access(host, TOKEN).refusal(HERE, None) is not None
    assert Access(host, TOKEN).refusal({"Host": "any.example", "Authorization": f"Bearer {TOKEN}"}, None) is None


@pytest.mark.parametrize("token", ["", "short", "a" * 15, "ä" * 20, "a token\nof two lines"])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="16 or more"):
        Access("127.0.0.1", token)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_none(host: str) -> None:
    assert Access(host, None).refusal(HERE, None) is None


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({}, "host"),
        ({"Host": "evil.example:8765"}, "host"),
        ({"Host": "localhost.evil.example"}, "host"),
        ({"Host": "["}, "host"),
        ({"Host": "localhost@evil.example"}, "host"),
        ({**HERE, "Origin": "http://evil.example"}, "origin"),
        ({**HERE, "Origin": "null"}, "origin"),
        ({**HERE, "Origin": ""}, "origin"),
        ({**HERE, "Origin": "http://["}, "origin"),
        ({**HERE, "Origin": "http://127.0.0.1:9999"}, "origin"),
        ({**HERE, "Origin": "http://127.0.0.1:8765.evil.example"}, "origin"),
    ],
)
def test_foreign_pages_and_names_are_refused(headers: dict[str, str], kind: str) -> None:
    refusal = Access("127.0.0.1", None).refusal(headers, None)
    assert refusal is not None
    assert (refusal.status, refusal.kind) == (403, kind)


@pytest.mark.parametrize("headers", [{"Host": "localhost:1"}, {"Host": "[::1]:1"}, {"Host": "127.0.0.1"}])
def test_the_page_itself_is_not_foreign(headers: dict[str, str]) -> None:
    for scheme in ("http", "https"):
        assert Access("localhost", None).refusal({**headers, "Origin": f"{scheme}://{headers['Host']}"}, None) is None


@pytest.mark.parametrize(
    ("authorization", "cookie", "is_right"),
    [
        (f"Bearer {TOKEN}", None, True),
        (f"bearer {TOKEN} ", None, True),
        (None, TOKEN, True),
        (None, None, False),
        (TOKEN, None, False),
        (f"Basic {TOKEN}", None, False),
        (f"Bearer {TOKEN[:-1]}", None, False),
        (f"Bearer {TOKEN}x", None, False),
        ("Bearer ", "", False),
        ("Bearer \udcff", "ä", False),
    ],
)
def test_the_token_is_asked_for(authorization: str | None, cookie: str | None, is_right: bool) -> None:
    headers = HERE if authorization is None else {**HERE, "Authorization": authorization}
    refusal = Access("127.0.0.1", TOKEN).refusal(headers, cookie)
    assert (refusal is None) == is_right
    if refusal is not None:
        assert (refusal.status, refusal.kind) == (401, "token")
        assert TOKEN not in refusal.message

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from edgeseq.errors import ConfigError
from edgeseq.runtime.serve.limits import Limits


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, True, "7", float("nan"), float("inf"), None])
def test_what_is_no_bound_is_refused(name: str, value: Any) -> None:
    if name.endswith("_s") and value is True:
        value = -0.5
    with pytest.raises(ConfigError, match=f"expected {name}, "):
        Limits(**{name: value})

"""The live page in headless Chromium."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.serve.browser import CHROMIUM, Browser
from tests.runtime.serve.serving import OFFLINE, TINY, noise, run, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

START = "document.getElementById('start')"


@pytest.mark.parametrize(("width", "dark", "n"), [(1100, False, 300), (390, True, 1600)])  # 1600 are more than one sees
def test_one_sees_the_predictions_come(tmp_path: Path, width: int, dark: bool, n: int) -> None:
    recording = tmp_path / "noise.csv"
    np.savetxt(recording, noise(n), delimiter=",", header="x,y,z", comments="", fmt="%.9g")

    async def test() -> None:
        async with (
            serving(replay=recording, lookahead=TINY, offline=OFFLINE) as served,
            Browser(width=width, dark=dark) as page,
        ):
            await page.call("Page.navigate", url=served.base + "/")
            await page.until(f"{START} && !{START}.disabled")
            assert await page.ask("document.querySelectorAll('.uplot canvas').length") == 4
            await page.ask("const s = document.getElementById('speed'); s.value = '10'; s.onchange()")
            await page.ask(f"{START}.click()")
            await page.until("document.getElementById('state').dataset.state == 'playing'")
            await page.until("document.getElementById('state').dataset.state == 'ended'")
            cells = await page.ask(
                "[...document.querySelectorAll('#models tbody tr')].map(r => r.innerText.split('\\t'))"
            )
            assert [row[:3] for row in cells] == [
                ["causal", "with its sample", f"{n / 50:.2f} s"],
                ["lookahead", "with its sample", f"{n / 50:.2f} s"],
                ["offline", "once all samples are there", f"{n / 50:.2f} s"],
            ]
            assert cells[0][3] == "100.0 %"
            assert float(cells[0][4]) < 1e-5
            assert str(n) in await page.ask("document.getElementById('figures').innerText")
            assert await page.ask("document.documentElement.scrollWidth") <= width
            assert await page.ask(_DRAWN) > 0
            assert page.errors == []
            await page.picture(tmp_path / "page.png")
            assert (tmp_path / "page.png").stat().st_size > 10_000

    run(test)


_DRAWN = """(() => {  // pixels of the ribbons that are not clear
  const c = document.querySelector('#ribbons canvas');
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n;
})()"""


def test_the_page_asks_for_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESEQ_TOKEN", "a-token-of-some-length")

    async def test() -> None:
        async with serving() as served, Browser() as page:
            await page.call("Page.navigate", url=served.base + "/")
            await page.until("document.querySelector('input[name=token]')")
            assert await page.ask("document.getElementById('start')") is None
            enter = "document.querySelector('input').value = 'a-token-of-some-length'; document.forms[0].submit()"
            await page.ask(enter)
            await page.until(f"{START} && !{START}.disabled")

    run(test)

"""docs/img/page.png, the page of `ancestral serve RUN` after a draw, in a Chromium: scripts/figures/page.py RUN"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

OUT = Path(__file__).resolve().parents[2] / "docs" / "img" / "page.png"
PATIENCE = 300_000  # ms


def main(run: Path) -> None:
    """Serve, draw, photograph."""
    command = [sys.executable, "-m", "ancestral", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
        assert server.stdout is not None
        try:
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address is not None
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1100, "height": 760})
            page.set_default_timeout(PATIENCE)
            page.goto(address[0])
            page.click("#draw .go:enabled")
            page.wait_for_selector("#draw .after:not([hidden])")
            # How long it took is of this machine at this moment, and no part of the page.
            page.evaluate("for (const one of document.querySelectorAll('#draw .status')) one.textContent = ''")
            picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
            picture.quantize(64, dither=Image.Dither.NONE).save(OUT, optimize=True)
            browser.close()
        finally:
            server.terminate()
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""`make screenshots`: pictures of the page of `podwire ui`, with made-up traffic, for README.md and the docs.

It needs chromium, which runs in a network namespace with nothing but lo; so it needs root.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from podwire.page import server
from podwire.tests.page_world import Source, World
from podwire_base.kernel.netns import CLONE_NEWNET, unshare

DOCS = Path(__file__).resolve().parents[1] / "docs"
KEY = "key"


def _serve(ready: threading.Event, ports: list[int]) -> None:
    async def work() -> None:
        sockets = server.listen(0)
        ports.append(sockets[0].getsockname()[1])
        page = server.Page(Source(World(4, 6)), KEY, ports[0], server.files())
        async with server.serving(page, sockets):
            ready.set()
            await asyncio.Event().wait()

    asyncio.run(work())


def main() -> int:
    program = shutil.which("chromium")
    if program is None:
        print("chromium is not installed: `make test-packages` installs it", file=sys.stderr)
        return 1
    try:
        unshare(CLONE_NEWNET)
    except OSError as err:
        print(f"a network namespace for the browser: {err.strerror}; this needs root", file=sys.stderr)
        return 1
    _lo_up()
    ready, ports = threading.Event(), list[int]()
    threading.Thread(target=_serve, args=(ready, ports), daemon=True).start()
    ready.wait()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, timezone_id="UTC", locale="en-GB")
        page.goto(f"http://127.0.0.1:{ports[0]}/#{KEY}")
        page.wait_for_selector("#wires g")
        page.locator("#problems button").first.click()
        page.wait_for_function("() => document.getElementById('lines').textContent.includes('verdict')")
        page.screenshot(path=DOCS / "see-the-network.png")
        browser.close()
    print(f"wrote {DOCS / 'see-the-network.png'}")
    return 0


def _lo_up() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        ipr.link("set", index=1, state="up")


if __name__ == "__main__":
    sys.exit(main())

"""The page of `podwire ui` in a browser: what people see and reach of it, and that it asks nobody else.

The browser and the page's server are in a network namespace of their own, which has nothing but lo.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

from lab.netns import NetNS
from podwire.page import server
from podwire.page.view import Heard
from podwire.tests.page_world import HOSTILE, Source, World
from podwire_base.patience import patient

KEY = "k" * 43
SIZES = {"desk": (1280, 800), "tablet": (768, 1024), "phone": (390, 844)}
WORLDS = {"10": (2, 5), "100": (5, 8), "300": (10, 9)}
LANES = 1080  # the least width at which the picture is drawn


def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        if os.environ.get("CI"):
            raise AssertionError("chromium is not installed: `make test-packages` installs it")
        pytest.skip("chromium is not installed")
    return found


class Served:
    """The page's server, in a thread, at a port of the namespace."""

    def __init__(self, ns: NetNS, world: World) -> None:
        self.ns, self.source = ns, Source(world)
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self.key = KEY
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        sockets = self.ns.call(lambda: server.listen(self.port))
        self.port = sockets[0].getsockname()[1]
        ready = threading.Event()

        async def work() -> None:
            self._stop = asyncio.Event()
            async with server.serving(server.Page(self.source, self.key, self.port, server.files()), sockets):
                ready.set()
                await self._stop.wait()

        self._thread = threading.Thread(target=lambda: self.loop.run_until_complete(work()))
        self._thread.start()
        assert ready.wait(20)

    def stop(self) -> None:
        if self._thread is not None:
            assert self._stop is not None
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None

    def tell(self) -> None:
        self.loop.call_soon_threadsafe(self.source.tell)


@pytest.fixture(scope="module")
def alone() -> Iterator[NetNS]:
    ns = NetNS("page")
    yield ns
    ns.close()


@pytest.fixture(scope="module")
def browser(alone: NetNS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    wrapper: Path = tmp_path_factory.mktemp("browser") / "chromium"
    wrapper.write_text(f'#!/bin/sh\nexec nsenter --net={alone.path} -- {chromium()} "$@"\n')
    wrapper.chmod(0o755)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=wrapper, args=["--no-sandbox", "--disable-dev-shm-usage"], timeout=60_000
        )
        yield found
        found.close()


@pytest.fixture
def serve(alone: NetNS) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(spaces: int = 4, each: int = 6, **more: Any) -> Served:
        made.append(Served(alone, World(spaces, each, **more)))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page; nothing may be said on its console but what a test expects."""
    contexts, said = [], list[str]()

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error":
            said.append(message.text)

    def open_(served: Served, size: str = "desk", scheme: str = "light", **more: Any) -> Page:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            **more,
        )
        contexts.append(context)
        context.set_default_timeout(patient(20) * 1000)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{served.url}#{served.key}")
        page.wait_for_selector("tbody tr")
        return page

    open_.said = said  # type: ignore[attr-defined]  # what the console said
    yield open_
    for context in contexts:
        context.close()


def names(page: Page) -> list[str]:
    return [words.strip() for words in page.locator("tbody tr:not(.space) th").all_inner_texts()]


def until(page: Page, condition: str) -> None:
    """Waits until a condition of the page holds. As a function: its policy forbids strings."""
    page.wait_for_function(f"() => {condition}")


def judged(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("pods", list(WORLDS))
def test_it_is_readable(serve: Any, visit: Any, pods: str) -> None:
    spaces, each = WORLDS[pods]
    page = visit(serve(spaces, each))
    assert page.locator("#problems button").count() == 5
    assert page.locator("tbody tr").count() == (spaces if spaces * each > 40 else spaces * (each + 1))
    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            if pods == "10":  # the rules look at every element: the others only have more of the same
                judged(page)
        until(page, f"(document.querySelectorAll('#wires g').length > 0) === {str(width >= LANES).lower()}")
        assert page.locator("#wires g").count() <= 120
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, size  # nobody scrolls sideways
    page.locator("#problems button").first.click()
    until(page, "document.getElementById('lines').textContent.includes('endpoint')")
    judged(page)
    assert visit.said == []


def test_nothing_moves_and_the_focus_stays_while_figures_change(serve: Any, visit: Any) -> None:
    served = serve()
    page = visit(served)
    page.locator("tbody tr:not(.space) button").nth(3).focus()
    where = """() => [...document.querySelectorAll('tbody tr, #callers li, #problems button, #nodes li')]
        .map((one) => [one.textContent.match(/[a-z]+.?[a-z0-9]*/)[0], one.getBoundingClientRect()])
        .map(([words, box]) => [words, box.x, box.y])"""
    before, focused = page.evaluate(where), page.evaluate("document.activeElement.textContent")
    for number in range(20):
        for _, row in served.source.world.rows:
            row["opened"] = 1 + (row["opened"] * 7 + number) % 90
        served.source.world.at += 2
        at = served.source.world.at
        served.tell()
        until(
            page, f"document.getElementById('state').textContent.endsWith(new Date({at * 1000}).toLocaleTimeString())"
        )
    assert page.evaluate(where) == before
    assert page.evaluate("document.activeElement.textContent") == focused and focused.startswith("app")
    assert visit.said == []


def test_keyboard_alone_reaches_a_problem_its_reason_and_comes_back(serve: Any, visit: Any) -> None:
    page = visit(serve())
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#problems') !== null"):
            break
    words = page.evaluate("document.activeElement.textContent")
    assert "refused, no-endpoints" in words
    page.keyboard.press("Enter")
    until(page, "document.getElementById('lines').textContent.includes('verdict')")
    assert page.evaluate("document.activeElement.id") == "close"
    commands = page.locator("#commands").inner_text().splitlines()
    assert commands[0].startswith("podwire explain infra/app0-") and commands[0].endswith("infra/app1:80")
    assert commands[1] == "podwire flows -f --from-pod infra/app0 --to-service infra/app1 --verdict refused"
    assert "no-endpoints" in page.locator("#figures").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    assert page.evaluate("document.activeElement.textContent") == words
    # a row tells its callers in words, without the picture
    page.locator("tbody tr:not(.space) button").nth(1).press("Enter")
    assert page.locator("#pair-list button").count() >= 2
    page.locator("#pair-list button").first.press("Enter")
    until(page, "document.getElementById('lines').textContent.includes('verdict')")


def test_search_failing_only_folding_pause_and_looking_back(serve: Any, visit: Any) -> None:
    served = serve()
    page = visit(served)
    whole = len(names(page))
    page.fill("#find", "no-endpoints")
    assert page.locator("#problems button").count() == 1 and len(names(page)) == 1
    page.fill("#find", "shop/app1")
    assert "app1" in names(page)
    page.fill("#find", "")
    page.check("#failing")
    assert 0 < len(names(page)) <= 5
    page.uncheck("#failing")
    page.locator("tr.space button").first.click()
    assert len(names(page)) == whole - 6 and page.locator("#callers").inner_text().startswith("outside\ninfra/*")
    page.locator("tr.space button").first.click()
    assert len(names(page)) == whole
    page.click("#pause")
    served.source.world.rows.clear()
    served.tell()
    until(page, "document.getElementById('state').textContent.startsWith('paused')")
    assert page.locator("#problems button").count() == 5
    page.click("#pause")
    page.wait_for_selector("#fine")
    assert page.locator("#problems button").count() == 0 and len(names(page)) == whole
    page.locator("#ago").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    until(page, "document.getElementById('state').textContent.startsWith('30 s ago')")
    for _ in range(200):
        if ("at", 30.0) in served.source.asked:
            break
        page.wait_for_timeout(20)
    assert ("at", 30.0) in served.source.asked
    assert page.locator("#ago").get_attribute("aria-valuetext") == "30 s ago"
    page.keyboard.press("End")
    until(page, "document.getElementById('state').textContent.startsWith('live')")
    assert visit.said == []


def test_names_from_the_network_stay_text(serve: Any, visit: Any) -> None:
    served = serve(2, 3, hostile=True)
    served.source.world.heard.append(Heard(HOSTILE, f"<script>alert(1)</script>{HOSTILE}"))
    served.source.latest = served.source.world.snapshot()
    page = visit(served)
    assert HOSTILE in names(page) and page.locator("img, script:not([src])").count() == 0
    page.get_by_role("button", name=HOSTILE, exact=True).first.click()
    assert HOSTILE in page.locator("#panel-title").inner_text() and page.locator("img").count() == 0
    assert visit.said == []


TRY = """
const tried = {};
const attempt = (name, work) => { try { work(); tried[name] = "ran"; } catch (error) { tried[name] = error.name; } };
attempt("eval", () => eval("1"));
attempt("function", () => new Function("return 1")());
attempt("timer", () => setTimeout("document.title = 'ran'", 0));
attempt("markup", () => { document.body.innerHTML += "<b>x</b>"; });
const inline = document.createElement("script");
attempt("inline", () => { inline.textContent = "document.title = 'ran'"; document.head.append(inline); });
const style = document.createElement("div");
style.setAttribute("style", "color: red"); document.body.append(style);
document.body.dataset.style = style.style.color;
fetch("http://[::1]:9/").then(() => { tried.fetch = "ran"; }, () => { tried.fetch = "refused"; })
  .then(() => { document.body.dataset.tried = JSON.stringify(tried); });
"""


def test_no_eval_no_inline_script_and_no_other_origin(serve: Any, visit: Any) -> None:
    """Tried from the page's own script: what playwright evaluates passes the policy by."""
    served = serve()
    page = visit(served)
    page.route("**/page.js", lambda route: route.fulfill(body=TRY, content_type="text/javascript"))
    page.reload()
    until(page, "document.body.dataset.tried")
    tried = page.evaluate("JSON.parse(document.body.dataset.tried)")
    assert tried == {
        "eval": "EvalError", "function": "EvalError", "timer": tried["timer"], "markup": "TypeError",
        "inline": tried["inline"], "fetch": "refused",
    }  # fmt: skip
    assert page.title() == "podwire" and page.evaluate("document.body.dataset.style") == ""


def test_another_origin_gets_nothing(serve: Any, visit: Any, browser: Browser) -> None:
    """A page of another local server: it may neither read, nor frame, nor load a script."""
    ours, other = serve(), serve()
    page = visit(other)
    # its policy would stop it first, so a page without one is put in the place of the other server's
    page.route(f"{other.url}evil", lambda route: route.fulfill(body="<title>evil</title>", content_type="text/html"))
    page.goto(f"{other.url}evil")
    for init in ({"headers": {"Authorization": f"Bearer {KEY}"}}, {"mode": "no-cors"}, {}):
        got = page.evaluate(
            "([url, init]) => fetch(url, init).then((r) => r.type + r.status, (e) => e.name)",
            [f"{ours.url}api/at?ago=0", init],
        )
        assert got in ("TypeError", "opaque0"), got
    assert not [one for one in ours.source.asked if one[0] == "at"]
    frame = page.evaluate(
        """(url) => new Promise((done) => { const f = document.createElement('iframe'); f.src = url;
        f.onload = () => { try { done(f.contentDocument ? 'open' : 'closed'); } catch { done('closed'); } };
        document.body.append(f); })""",
        ours.url,
    )
    assert frame == "closed"
    # by its name and with a rebinding answer of a DNS server it would be the same origin: the Host tells
    with pytest.raises(Error):
        page.goto(f"http://evil.example:{ours.port}/")  # no names in this namespace
    got = ours.ns.run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: evil.example", ours.url])
    assert got.stdout == "421"


def test_a_key_that_is_missing_or_old_is_told(serve: Any, browser: Browser, visit: Any) -> None:
    served = serve()
    page = browser.new_page()
    page.goto(served.url)
    until(page, "document.getElementById('state').textContent.includes('key is missing or old')")
    page.close()
    good = visit(served)
    assert "#" not in good.url and KEY not in good.content()  # not in the history, and not in the page
    good.reload()
    good.wait_for_selector("tbody tr")  # the session keeps it
    served.stop()
    served.key = "another"
    served.start()
    until(good, "document.getElementById('state').textContent.includes('key is missing or old')")


def test_a_server_that_goes_and_comes_and_a_clock_that_is_ahead(serve: Any, visit: Any, browser: Browser) -> None:
    served = serve()
    page = visit(served)
    page.clock.install()
    page.reload()
    page.wait_for_selector("tbody tr")
    served.stop()
    page.clock.run_for(60_000)
    until(page, "/no answer from podwire ui for [56]\\d s/.test(document.getElementById('state').textContent)")
    assert len(names(page)) == 24  # the last picture stays, and says how old it is
    served.start()
    page.clock.run_for(6_000)
    until(page, "document.getElementById('state').textContent.startsWith('live')")
    ahead = visit(served)
    ahead.clock.install(time=served.source.world.at + 600)
    ahead.reload()
    until(ahead, "document.getElementById('state').textContent.startsWith('live')")
    wanted = ahead.evaluate(f"new Date({served.source.world.at * 1000}).toLocaleTimeString()")
    assert wanted in ahead.locator("#state").inner_text()  # the time of the data, whatever the page's clock says


def test_a_dead_node_and_colours_that_the_user_chose(serve: Any, visit: Any) -> None:
    page = visit(serve(), forced_colors="active")
    assert "✕ NotReady, silent: no answer node3" in page.locator("#nodes").inner_text()
    assert "412 events lost" in page.locator("#nodes").inner_text()
    # never colour alone: the mark and the word stand beside the figure
    failing = page.locator("tbody tr:not(.space) td.failed b:not([class=''])")
    marks = {words.split()[0] for words in failing.all_text_contents()}
    assert marks == {"✕", "⊘", "…", "↯"} and "dropped" in " ".join(failing.all_text_contents())
    assert page.locator("#wires").get_attribute("aria-hidden") == "true"


def test_a_redraw_at_80_services_is_cheap(serve: Any, visit: Any) -> None:
    served = serve(10, 8)
    page = visit(served)
    for button in page.locator("tr.space button").all():
        button.click()
    assert len(names(page)) == 80
    cdp = page.context.new_cdp_session(page)
    cdp.send("Performance.enable")

    def spent() -> float:
        rows = {one["name"]: one["value"] for one in cdp.send("Performance.getMetrics")["metrics"]}
        return float(rows["TaskDuration"])

    def redraw() -> None:
        for _, row in served.source.world.rows:
            row["opened"] += 3
        served.source.world.at += 2
        at = served.source.world.at
        served.tell()
        until(
            page, f"document.getElementById('state').textContent.endsWith(new Date({at * 1000}).toLocaleTimeString())"
        )

    redraw()
    found = []
    for _ in range(5):
        before = spent()
        redraw()
        found.append(spent() - before)
    assert sorted(found)[2] <= 0.2 * patient(1), found  # 50 ms is the figure; the machine of the tests is a busy one


def test_nothing_leaves_the_namespace(alone: NetNS, serve: Any, visit: Any) -> None:
    """It has nothing but lo, and the page works there: it needs nothing else."""
    visit(serve())
    counters = alone.run(["cat", "/proc/net/dev"]).stdout.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in counters if int(line.split(":")[1].split()[8]) > 0] == ["lo"]

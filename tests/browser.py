"""A real browser for tests of pages: Chromium, driven by Playwright. For tests with the marker `browser`."""

import contextlib
import shutil
import time

from waits import HANG

# Chromium asks its maker for nothing.
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@contextlib.contextmanager
def chromium():
    """A browser without a window; `browser.new_context()` gives a person of their own."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "tests with the marker browser need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, headless=True, args=list(QUIET))
        yield made
        made.close()


@contextlib.contextmanager
def page_of(browser, viewport=WIDE, **options):
    """A page whose errors fail the test, and with them requests to other machines."""
    context = browser.new_context(viewport=viewport, **options)
    context.set_default_timeout(1000 * HANG)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def asked(request):
        if not request.url.startswith(("http://127.0.0.1:", "data:", "file:", "blob:")):
            wrong.append(request.url)

    page.on("request", asked)
    yield page
    context.close()
    assert not wrong, wrong


def until(page, condition):
    """Waits for a condition in JavaScript, also where a page forbids `eval`; Playwright's way needs it."""
    end = time.monotonic() + HANG
    while not page.evaluate(condition):
        assert time.monotonic() < end, (
            f"{condition} did not become true; the page: {page.inner_text('body')}"
        )
        page.wait_for_timeout(50)


def assert_accessible(page):
    """Asserts that axe-core finds nothing on the page as it stands."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    assert not found, [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]

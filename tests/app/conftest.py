"""Fixtures of the app's tests: results to read, the app under `AppTest`, and the app in a real browser."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.app.support import MAIN, SCREENSHOTS, copy_results, settle


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """The app reads these results and no runs."""
    results = copy_results(tmp_path)
    monkeypatch.setenv("REGATE_RESULTS", str(results))
    monkeypatch.setenv("REGATE_RUNS", str(tmp_path / "runs"))
    return results


# --- in a browser ---


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a running app."""
    folder = tmp_path_factory.mktemp("app")
    results = copy_results(folder)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"REGATE_RESULTS": str(results), "REGATE_RUNS": str(folder / "runs")}
    command = [sys.executable, "-m", "streamlit", "run", str(MAIN), f"--server.port={port}", "--server.headless=true"]
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://localhost:{port}"
    try:
        _wait_until_up(process, address, folder / "log")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()
    said = (folder / "log").read_text()
    assert "Traceback" not in said, said[-4000:]


def _wait_until_up(process: subprocess.Popen, address: str, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the app did not answer: {log.read_text()}")


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, or the one that CHROMIUM names."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser, server):
    """Opens pages of the app in windows of their own; no page may log an error or ask another host for anything."""
    from playwright.sync_api import expect

    expect.set_options(timeout=120_000)
    contexts, bad = [], []

    def said(message) -> None:
        # Streamlit asks for its health below the page's own path first, and is told 404, before it asks at the root.
        if message.type == "error" and "_stcore" not in message.location.get("url", ""):
            bad.append(f"console: {message.text} {message.location.get('url')}")

    def asked(request) -> None:
        if not request.url.startswith((server, server.replace("http", "ws"), "data:", "blob:")):
            bad.append(f"asked for {request.url}")

    def open_page(path: str = "", width: int = 1280, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", said)
        page.on("pageerror", lambda error: bad.append(f"page error: {error}"))
        page.on("request", asked)
        page.goto(f"{server}/{path}", timeout=120_000)
        page.get_by_role("heading", level=2).first.wait_for()
        settle(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not bad, "\n".join(bad)


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """A git-ignored folder for pictures that a person looks at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS

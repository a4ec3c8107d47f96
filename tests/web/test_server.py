"""The page's server as a program: it serves while it draws, cancels what does not react, and always ends."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest

pytest.importorskip("gradio")
import httpx
from page_client import (
    SIGINT,
    SIGTERM,
    Client,
    address,
    children,
    drawing_process,
    gone,
    last_status,
    seconds_until_end,
    serve,
)
from small_run import small_run

pytestmark = pytest.mark.slow
ENDLESS = {"size": "1024x1024", "steps": 1}  # attention over 262,144 patches
HOSTILE = '<img src=x onerror="alert(1)">![x](javascript:1)'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "small")


def upload_folders(temporary):
    return list(temporary.glob("asyncdiff-uploads-*"))


def begin(page):
    """Request a drawing whose only step never ends; return the client, and its texts once that step has begun."""
    client = Client(page)
    texts = client.draw(**ENDLESS)
    assert any("<b>Drawing</b> <span>step 0 of 1</span>" in text for text in texts)
    return client, texts


def test_what_never_ends_is_cancelled_and_others_are_served_and_no_process_survives_the_server(run):
    with serve(run, "--max_seconds", "1000000") as server:
        page = address(server)
        visitor, drawing = Client(page), drawing_process(server)
        assert visitor.result().startswith("Done in")
        client, texts = begin(page)
        client.stop()
        assert last_status(texts) == "Stopped at step 0."
        assert gone(drawing)
        assert visitor.result().startswith("Done in")
        drawing = drawing_process(server)
        client, texts = begin(page)
        texts.close()  # the tab
        client.http.close()
        assert gone(drawing)
        assert visitor.result().startswith("Done in")
        drawing = drawing_process(server)
        server.kill()
        assert gone(drawing)


@pytest.mark.parametrize("signals", [[SIGTERM], [SIGINT], [SIGINT, SIGINT]])
def test_a_signal_ends_the_server_while_a_step_never_ends(signals, run, tmp_path):
    with serve(run, "--max_seconds", "1000000", temporary=tmp_path) as server:
        page = address(server)
        drawing = drawing_process(server)
        _, texts = begin(page)
        files = {"files": ("a.png", b"not an image")}
        assert httpx.post(f"{page}gradio_api/upload", files=files).status_code == 200
        assert upload_folders(tmp_path)
        assert seconds_until_end(server, *signals) < 5
        assert gone(drawing)
        assert server.returncode == 0
        assert server.stdout.read().splitlines()[-1] == "stopped"
        texts.close()
    assert not upload_folders(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(SIGTERM, 143), (SIGINT, 130)])
def test_a_signal_ends_the_server_while_it_loads(number, code, run):
    with serve(run) as server:
        next(line for line in server.stdout if line.startswith("loading"))
        while not any(b"spawn_main" in name for name in commands(server.pid)):
            time.sleep(0.01)
        assert seconds_until_end(server, number) < 5
        assert server.returncode == code
        assert server.stdout.read().splitlines()[-1] == "interrupted"


def commands(pid):
    for child in children(pid):
        try:
            yield Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue


def test_wrong_options_are_refused_in_one_line(run):
    for options, message in (
        (["--device", "cuda:77"], "error: --device cuda:77 is not available on this machine: use cpu"),
        (["--max_seconds", "0"], "error: --max_seconds must lie in [1, 1000000], got 0.0: 300 is the default"),
    ):
        with serve(run, *options) as server:
            *_, last = server.stdout
            assert last == f"{message}\n"
            assert server.wait(60) == 2


def test_names_are_shown_as_text(tmp_path):
    run = small_run(tmp_path / HOSTILE)
    with serve(run) as server:
        page = address(server)
        text = httpx.get(page).text
        assert "<img src=x" not in text
        about = next(
            part["props"]["value"]
            for part in httpx.get(f"{page}config").json()["components"]
            if part["props"].get("elem_id") == "about"
        )
        assert "<img" not in about
        assert "![" not in about
        assert r"&lt;img src=x onerror=" in about


def test_messages_of_unknown_length_and_too_many_files_are_refused(run, tmp_path):
    with serve(run, temporary=tmp_path) as server:
        page = address(server)
        chunks = (b"x" for _ in range(3))
        assert httpx.post(f"{page}gradio_api/upload", content=chunks).status_code == 411
        (folder,) = upload_folders(tmp_path)
        with (folder / "large").open("wb") as file:
            file.truncate(401 * 2**20)
        assert httpx.post(f"{page}gradio_api/upload", files={"files": b"x"}).status_code == 503


CLIENTS = 20


def test_twenty_visitors_at_once_one_of_whom_asks_for_the_largest_picture(run):
    """Everyone is served, or refused in one line, and the page answers while it draws."""
    with serve(run, "--max_seconds", "60") as server:
        page = address(server)
        visitors = [Client(page) for _ in range(CLIENTS)]
        too_large = visitors[0].result(size="1024x1024", steps=1000)
        assert "a request must take at most 60 s, got about" in too_large
        largest = too_large.rpartition("choose ")[2].partition(" ")[0]
        everyone_asked, answers, served = threading.Event(), [], {}

        def watch():
            while not everyone_asked.is_set():
                started = time.monotonic()
                assert httpx.get(page, timeout=60).status_code == 200
                answers.append(time.monotonic() - started)
                time.sleep(0.1)

        def ask(number):
            started = time.monotonic()
            request = {"size": largest, "steps": 1000} if number == 0 else {"seed": number}
            status = visitors[number].result(**request)
            served[number] = time.monotonic() - started
            return status

        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            watching = pool.submit(watch)
            statuses = list(pool.map(ask, range(CLIENTS)))
            everyone_asked.set()
            watching.result()
    print(
        f"largest {largest}: {statuses[0]}; {sum(s.startswith('Done') for s in statuses)} of {CLIENTS} served, "
        f"after {median(served.values()):.1f} s (median), {max(served.values()):.1f} s (worst); the page answered "
        f"{len(answers)} times after {median(answers):.3f} s (median), {max(answers):.3f} s (worst)"
    )
    assert all(status.startswith(("Done in", "That did not work: ")) for status in statuses)
    assert sum(status.startswith("Done in") for status in statuses) >= CLIENTS - 1
    assert median(answers) < 5

"""The page over HTTP, as its own script uses it, and a server in a process of its own."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
# Values of the controls, in the order in which the page sends them.
VALUES = {
    "kind": "new", "photo": None, "paint": "", "seed": 0, "count": 1, "label": -1, "order": "together", "overlap": 0.75,
    "steps": 4, "steps_per_patch": 16, "guidance": 1, "input_guidance": 0, "top": 0, "right": 0, "bottom": 0, "left": 0,
    "size": "", "tileable": False, "movie": False,
}  # fmt: skip


@contextmanager
def serve(run, *options, temporary=None, **popen):
    """Start a server, whose temporary files are in a folder; yield its process, which is killed at the end."""
    argv = [sys.executable, "-m", "asyncdiff", "serve", str(run), "--port", "0", "--examples", "none", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"TMPDIR": str(temporary)} if temporary else {})
    with subprocess.Popen(
        argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen
    ) as server:
        try:
            yield server
        finally:
            server.kill()
            server.stdout.close()


def address(server):
    """Wait for the page of a server, and return its address."""
    for line in server.stdout:
        if line.startswith("page: "):
            return re.search(r"http://\S+", line)[0]
    raise AssertionError("the server has ended")


def children(pid):
    """Processes that a process has started, and those that these have started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            child, parent = int(status.parent.name), int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [child, *children(child)]
    return found


def drawing_process(server):
    """Identifier of the process that draws."""
    return next(pid for pid in children(server.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())


def gone(pid, seconds=20.0):
    """Wait until a process has ended, and return whether it has."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def seconds_until_end(server, *signals):
    """Send signals to a server and return how long it takes to end."""
    started = time.monotonic()
    for number in signals:
        server.send_signal(number)
        time.sleep(0.2)
    server.wait(30)
    return time.monotonic() - started


class Client:
    """A visitor's page."""

    def __init__(self, page):
        self.http = httpx.Client(base_url=page, timeout=600, headers={"Origin": page.rstrip("/")})
        self.session = uuid.uuid4().hex[:10]
        config = self.http.get("config").json()
        button = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        clicks = {target[0]: d["id"] for d in config["dependencies"] for target in d["targets"] if target[1] == "click"}
        self.draw_index, self.stop_index = clicks[button["draw"]], clicks[button["stop"]]

    def draw(self, **values):
        """Request images, and yield the HTML of the view and the message whenever they change."""
        own = self._join(self.draw_index, list((VALUES | values).values()))
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as events:
            for line in events.iter_lines():
                if not line.startswith("data:"):
                    continue
                event = json.loads(line[5:])
                if event.get("event_id") not in (own, None):
                    continue
                if event["msg"] in ("process_generating", "process_completed"):
                    yield json.dumps(event["output"])
                if event["msg"] in ("process_completed", "close_stream"):
                    return

    def stop(self):
        """Press Cancel."""
        self._join(self.stop_index, [])

    def _join(self, index, data):
        body = {"data": data, "fn_index": index, "session_hash": self.session, "event_data": None, "trigger_id": None}
        reply = self.http.post("gradio_api/queue/join", json=body)
        reply.raise_for_status()
        return reply.json()["event_id"]

    def result(self, **values):
        """Request images and return the last HTML: done, or the reason why not."""
        return last_status(self.draw(**values))


def last_status(texts):
    """Wait for the end of a request and return its last status: "Done in 0.1 seconds.", or the reason why not."""
    found = re.findall(r"<b>(Done|Stopped|That did not work:)</b> <span>(.*?)</span>", "".join(texts))
    return html.unescape(" ".join(found[-1])) if found else ""


SIGTERM, SIGINT = signal.SIGTERM, signal.SIGINT

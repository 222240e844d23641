"""A stage that calls a paid API and is killed again and again: nothing done is paid for twice.

A server on 127.0.0.1 counts calls and misbehaves: 429 with Retry-After, 500, answers that never
come. A child process works through the items and gets SIGKILL at random moments. Every answer
that the server gives is a call that would have been paid for.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import casckpt
from tests.adapters.kills import note

PACKAGE_HOME = Path(casckpt.__file__).parents[1]
ITEM_COUNT = 120
KILLS = int(os.environ.get("CASCKPT_TEST_KILLS", "6"))

SCRIPT = """
import json, os, sys, urllib.error, urllib.request
import casckpt

store_path, url, workers, save_every, batch_size, count = sys.argv[1:7]
workers, save_every, batch_size = int(workers), int(save_every), int(batch_size)

class Broken(Exception):
    pass

def post(texts):
    request = urllib.request.Request(url, json.dumps(texts).encode())
    try:
        with urllib.request.urlopen(request, timeout=0.5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as exc:
        if exc.code == 500:
            raise Broken from exc
        raise
    except (TimeoutError, urllib.error.URLError) as exc:
        raise TimeoutError(str(exc)) from exc

def one(text):
    found = post([text])
    return casckpt.Result(found["answers"][0], tokens=found["tokens"])

def many(texts):
    found = post(texts)
    return casckpt.Result(found["answers"], tokens=found["tokens"])

with casckpt.open(store_path) as store, store.run("correction") as run:
    stage = run.stage("api", [f"text {i}" for i in range(int(count))], save_every=save_every)
    results = stage.map(
        many if batch_size else one,
        batch_size=batch_size or None,
        workers=workers,
        retry={urllib.error.HTTPError: 50, Broken: 50, TimeoutError: 50},
    )
    print(json.dumps({"results": list(results), "totals": stage.totals}))
"""


class Api:
    """The paid API: counts the items that it gave an answer for."""

    def __init__(self, *, trouble: float) -> None:
        self.answered: Counter[str] = Counter()
        self.troubles: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._random = random.Random(5)
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with api._lock:
                    kind = (
                        api._random.choice((429, 500, 0))
                        if (api._random.random() < trouble)
                        else 200
                    )
                    if kind == 200:
                        api.answered.update(texts)
                    else:
                        api.troubles[kind] += 1
                if kind == 0:
                    time.sleep(0.8)  # longer than the client waits; it never gets this
                    return
                time.sleep(0.01)
                body = json.dumps(
                    {"answers": [text.upper() for text in texts], "tokens": len(texts)}
                ).encode()
                self.send_response(kind)
                if kind == 429:
                    self.send_header("Retry-After", "0.05")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *arguments: None  # clients that were killed
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def api():
    server = Api(trouble=0.06)
    yield server
    server.close()


def start(store: Path, api: Api, workers: int, save_every: int, batch_size: int):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store), api.url,
         *map(str, (workers, save_every, batch_size, ITEM_COUNT))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PACKAGE_HOME)},
    )  # fmt: skip


def durable(store: Path) -> set[str]:
    """Return the items whose results are in the store, read from outside."""
    if not (store / "format.json").exists():
        return set()
    with casckpt.open(store, mode="r") as opened:
        found = opened._repository.rows("progress")
    return {json.loads(row.payload[2:])[0] for key, row in found if b"s\0api\0d" in key}


@pytest.mark.parametrize(
    ("workers", "save_every", "batch_size"), [(1, 1, 0), (4, 1, 0), (2, 8, 0), (2, 2, 3)]
)
def test_nothing_that_is_done_is_called_again(tmp_path, api, workers, save_every, batch_size):
    store = tmp_path / "store"
    moments = random.Random(workers * 100 + save_every * 10 + batch_size)
    landed = repeated = 0
    while landed < KILLS:
        before = api.answered.copy()
        finished = durable(store)
        child = start(store, api, workers, save_every, batch_size)
        # The kill falls while the stage works: so many answers after it has begun.
        goal = before.total() + moments.randrange(1, max(2, ITEM_COUNT // (KILLS + 2)))
        deadline = time.monotonic() + 60
        while child.poll() is None and api.answered.total() < goal:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03))
        killed = child.poll() is None
        child.send_signal(signal.SIGKILL)
        _, errors = child.communicate()
        assert killed, f"the stage ended before kill {landed + 1}: {errors}"
        time.sleep(0.05)  # what the server was answering when the client died
        landed += 1
        again = api.answered - before
        assert not finished & again.keys(), "a finished item was called again"
        repeated_now = sum((api.answered - Counter(api.answered.keys())).values())
        bound = max(workers, save_every) * (batch_size or 1)
        assert repeated_now - repeated <= bound
        repeated = repeated_now
    finished = durable(store)
    before = api.answered.copy()
    out, errors = start(store, api, workers, save_every, batch_size).communicate(timeout=120)
    found = json.loads(out)
    assert not finished & (api.answered - before).keys()
    assert found["results"] == [f"TEXT {i}" for i in range(ITEM_COUNT)], errors
    assert found["totals"] == {"tokens": ITEM_COUNT}
    assert sum(api.troubles.values()) > 0
    # Once more: no call at all, and the same answer.
    before = api.answered.copy()
    out, _ = start(store, api, workers, save_every, batch_size).communicate(timeout=120)
    assert json.loads(out) == found
    assert api.answered == before
    name = f"map_{workers}_workers_{save_every}_a_group_{batch_size}_a_call"
    note("stage", name, landed, landed + 2)


SHARED = """
import json, sys, time
import casckpt

with casckpt.open(sys.argv[1]) as store, store.run(sys.argv[2]) as run:
    stage = run.stage("both", range(60), shared=True)
    for key, item in stage:
        time.sleep(0.001)
        stage.done(key, [sys.argv[2], item], calls=1)
    print(json.dumps({"results": list(stage.results()), "totals": stage.totals}))
"""


def test_two_processes_on_a_shared_stage_agree_on_every_result(tmp_path):
    store = tmp_path / "store"
    casckpt.open(store).close()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(store), name],
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PACKAGE_HOME)},
        )
        for name in ("one", "two")
    ]
    first, second = (json.loads(child.communicate(timeout=120)[0]) for child in children)
    assert first == second
    assert [item for _, item in first["results"]] == list(range(60))
    assert first["totals"] == {"calls": 60}

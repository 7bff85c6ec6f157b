"""Flower in a real browser beside a running pool: it shows workers, slices and queues, and never a prompt."""

from __future__ import annotations

import json
import re
import socket
import stat
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tasks.ledger import reading
from tests.support.browser import PICTURES, browsing
from tests.support.cli import executable
from tests.support.nursery import Role
from tests.support.pool import TestPool, running, simulated
from tests.support.ports import free_port
from tests.support.waiting import eventually
from workers.simulator import SimulatorConfig, in_thread

#: in every prompt, and so in answers and errors that quote it
SECRET = "quetzalcoatl"
#: categories of the batch's jobs, and the class that each is of
CLASSES = {"summarize": "small", "reason": "reason", "embed": "embed", "code": "coder"}
NODES = ("gpu1", "gpu2")
TASK = "workers.run_slice"
PREFIX = "/pool/watch"
#: seconds between two questions to Flower, which answers them one by one
LOOK_S = 0.2
#: how Flower shows what a message is about
SHOWN = re.compile(
    r"\{'slice': '(?P<slice>\w+)', 'batch': '(?P<batch>\w+)', 'class': '(?P<class_>\w+)', 'jobs': (?P<jobs>\d+)\}"
)


def basic(credentials: str) -> str:
    """user:password as a request carries it."""
    return f"Basic {b64encode(credentials.encode()).decode()}"


@dataclass
class Flower:
    """One Flower and the way in. url: without the last slash, and without the prefix."""

    process: Role
    url: str
    auth: str
    prefix: str = ""

    def ask(self, path: str, method: str = "GET", auth: str | None = None) -> tuple[int, str]:
        """Status and body of one request. auth: other credentials than the right ones; "" for none."""
        credentials = self.auth if auth is None else auth
        headers = {"Authorization": basic(credentials)} if credentials else {}
        request = Request(self.url + path, method=method, headers=headers, data=b"" if method == "POST" else None)
        try:
            with urlopen(request, timeout=20) as reply:
                return reply.status, reply.read().decode(errors="replace")
        except HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")
        except OSError:
            return 0, ""

    def tasks(self, batch_id: str = "") -> dict[str, dict[str, Any]]:
        """The slices that it knows, or those of a batch, by id."""
        found: dict[str, dict[str, Any]] = json.loads(self.ask(f"{self.prefix}/api/tasks?taskname={TASK}")[1] or "{}")
        return {slice_id: task for slice_id, task in found.items() if batch_id in task["kwargs"]}

    def workers(self) -> set[str]:
        """The workers it has seen alive."""
        rows = json.loads(self.ask("/workers?json=1")[1] or "{}").get("data", [])
        return {row["hostname"] for row in rows if row["status"]}


def start_flower(pool: TestPool, *options: str, **environment: str) -> Flower:
    """Start one on a free port and wait until it answers."""
    port = free_port()
    process = pool.start("flower", "--port", str(port), *options, **environment)
    flower = Flower(process, f"http://127.0.0.1:{port}", environment.get("OFFLOAD_FLOWER_AUTH", ""))
    eventually(lambda: flower.ask("/", auth="")[0], "Flower answers", 60, LOOK_S)
    flower.auth = flower.auth or auth_file(pool).read_text().strip()
    return flower


def auth_file(pool: TestPool) -> Path:
    """Where the made password is kept."""
    return pool.home / "run" / "flower.auth"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestPool]:
    """Beat and two nodes, of which none serves class `coder`."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as simulator:
        config = simulated(simulator.url)
        with running(tmp_path_factory.mktemp("flower"), config, hurry=2) as made:
            made.start("beat")
            for node in NODES:
                made.start("worker", "--provider", "sim", "--node", node, "--serves", "small,reason,embed")
            eventually(lambda: _healthy(made) == set(NODES), "both nodes take work", 60, LOOK_S)
            yield made


def _healthy(pool: TestPool) -> set[str]:
    return {w.node for w in reading.all_workers(pool.db) if w.health == "healthy"}


@pytest.fixture(scope="module")
def flower(pool: TestPool) -> Flower:
    """Flower as `offload flower` starts it, once it knows the workers."""
    made = start_flower(pool)
    wanted = {f"celery@{node}/sim" for node in NODES} | {"scheduler@here"}
    eventually(lambda: made.workers() >= wanted, "Flower knows the workers", every_s=LOOK_S)
    return made


@pytest.fixture(scope="module")
def moved(pool: TestPool, flower: Flower) -> Flower:
    """A second one, under a prefix, with a password of somebody's choice, which may act; it starts without Redis."""
    pool.redis.kill()
    auth = flower.auth.replace("offload:", "somebody:")
    made = start_flower(pool, "--url-prefix", f"{PREFIX}/", "--writable", OFFLOAD_FLOWER_AUTH=auth)
    made.prefix = PREFIX
    assert made.ask(f"{PREFIX}/workers")[0] == 200
    pool.redis.start()
    return made


@pytest.fixture(scope="module")
def batch(pool: TestPool, flower: Flower) -> str:
    """A batch of all classes, done but for the class that nobody serves."""
    jobs = [
        {"id": f"{category}-{i}", "category": category, "input" if category == "embed" else "prompt": f"{SECRET} {i}"}
        for category in CLASSES
        for i in range(24)
    ]
    jobs += [{"id": f"bad-{i}", "category": "chat", "prompt": f"{SECRET} [[sim:400]]"} for i in range(3)]
    batch_id = pool.submit(jobs)
    eventually(lambda: pool.batch(batch_id).open == 24, "all but the class that nobody serves has ended", 60, LOOK_S)
    eventually(
        lambda: sum(shown_jobs(flower, batch_id).values()) >= len(jobs) - 24,
        "Flower knows their slices",
        every_s=LOOK_S,
    )
    return batch_id


def shown_jobs(flower: Flower, batch_id: str) -> Counter[str]:
    """The jobs of a batch by class, as its slices' shown arguments say."""
    found: Counter[str] = Counter()
    for slice_id, task in flower.tasks(batch_id).items():
        match = SHOWN.fullmatch(task["kwargs"])
        assert match, task["kwargs"]
        assert match["slice"] == slice_id
        found[match["class_"]] += int(match["jobs"])
    return found


@pytest.fixture(scope="module")
def browser(flower: Flower, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """Chromium with Flower's password."""
    user, password = flower.auth.split(":", 1)
    with browsing(tmp_path_factory.mktemp("chromium"), user, password) as made:
        yield made


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    """A tab; a script that fails fails the test."""
    tab = browser.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    tab.close()
    assert errors == []


def test_without_the_password_nothing_is_shown(flower: Flower) -> None:
    """Pages, API and metrics are 401 without credentials and with wrong ones; only `OK` is for everybody."""
    for path in ("/", "/workers", "/tasks", "/tasks/datatable", "/broker", "/api/tasks", "/api/workers", "/metrics"):
        for auth in ("", "offload:wrong"):
            assert flower.ask(path, auth=auth)[0] == 401, (path, auth)
    assert flower.ask("/api/worker/shutdown/x", "POST", auth="")[0] == 401
    assert flower.ask("/healthcheck", auth="") == (200, "OK")


def test_the_password_is_the_owners_alone(pool: TestPool, flower: Flower) -> None:
    """The made password is long, in a file of mode 0600, and in no command line and no log, which name the file."""
    user, password = flower.auth.split(":", 1)
    assert user == "offload"
    assert len(password) > 20
    assert stat.S_IMODE(auth_file(pool).stat().st_mode) == 0o600
    command = Path(f"/proc/{flower.process.pid}/cmdline")
    assert not command.exists() or password not in command.read_text()
    log = pool.log.read_text()
    assert password not in log
    assert str(auth_file(pool)) in log


def test_the_workers_page_lists_the_workers(flower: Flower, page: Page, batch: str) -> None:
    """Every worker of the pool is a row, online, and its name leads to its own page, which has its queues."""
    page.goto(f"{flower.url}/workers")
    for name in (*(f"celery@{node}/sim" for node in NODES), "scheduler@here"):
        row = page.locator("#workers-table tbody tr").filter(has_text=name)
        expect(row).to_have_count(1)
        expect(row).to_contain_text("Online")
    expect(page.locator("#workers-online")).to_have_text("3")
    picture(page, "workers")
    page.get_by_role("link", name="gpu1/sim").click()
    expect(page.locator("body")).to_contain_text("offload.embed")


def test_the_tasks_page_lists_slices(flower: Flower, page: Page, batch: str) -> None:
    """A batch's slices are found by its id: rows by their task's name with class, number of jobs and batch."""
    page.goto(f"{flower.url}/tasks?name={TASK}")
    page.get_by_role("searchbox").fill(f"kwargs:batch={batch}")
    rows = page.locator("#tasks-table tbody tr")
    expect(rows.filter(has_not_text=batch)).to_have_count(0)
    expect(rows.filter(has_not_text=TASK)).to_have_count(0)
    expect(rows.filter(has_text=re.compile(rf"(small|reason|embed), \d+ jobs, {batch}")).first).to_be_visible()
    lines = rows.all_inner_texts()
    assert all(re.search(rf"(small|reason|embed), \d+ jobs, {batch}", line) for line in lines), lines
    picture(page, "tasks")
    slice_id, task = eventually(lambda: _handed_over(flower, batch), "Flower hears that a slice's task is over")[0]
    page.goto(f"{flower.url}/task/{slice_id}")
    for text in (slice_id, TASK, batch, task["worker"], "SUCCESS"):
        expect(page.locator("#task-page")).to_contain_text(text)


def _handed_over(flower: Flower, batch: str) -> list[tuple[str, dict[str, Any]]]:
    return [(id_, task) for id_, task in flower.tasks(batch).items() if task["state"] == "SUCCESS"]


def test_the_jobs_of_a_slice_are_counted(flower: Flower, batch: str) -> None:
    """The numbers of jobs shown for a batch's slices add up to its jobs, by class; one that ran again counts again."""
    counts = shown_jobs(flower, batch)
    assert counts.keys() == {"small", "reason", "embed"}
    assert all(count >= 24 for count in counts.values())


def test_the_broker_page_has_a_queue_per_class(flower: Flower, page: Page, batch: str) -> None:
    """Every class's queue is a row, with what waits in it, those too that nobody serves."""
    page.goto(f"{flower.url}/broker")
    for name in CLASSES.values():
        expect(page.locator(f'[id="offload.{name}"]')).to_have_count(1)
    assert page.locator('[id="offload.coder"] td').nth(1).inner_text() == "1"
    assert page.locator('[id="offload.small"] td').nth(1).inner_text() == "0"
    picture(page, "broker")


@pytest.mark.slow
def test_no_page_has_a_prompt(pool: TestPool, flower: Flower, page: Page, batch: str) -> None:
    """What was submitted is nowhere: not in pages as a browser renders them, not in the API; nor are passwords."""
    known = flower.tasks()
    shown = [flower.ask(path)[1] for path in ("/api/tasks", "/api/workers", "/metrics", "/workers?json=1")]
    worker = quote("celery@gpu1/sim", safe="")
    for path in ("/workers", "/tasks", "/broker", f"/worker/{worker}", f"/task/{next(iter(known))}"):
        page.goto(flower.url + path)
        shown.append(page.content())
    shown += [flower.ask(f"/task/{slice_id}")[1] for slice_id in known]
    redis = urlsplit(pool.redis.url).password
    assert redis is not None
    for text in shown:
        assert text
        for secret in (SECRET, redis, flower.auth.split(":", 1)[1]):
            assert secret not in text


def test_it_only_shows(pool: TestPool, flower: Flower, page: Page, batch: str) -> None:
    """Without --writable nothing can be done: no button is there, and every request to act is 403."""
    worker = quote("celery@gpu1/sim", safe="")
    for path in (
        f"worker/shutdown/{worker}",
        f"worker/pool/grow/{worker}?n=1",
        f"worker/queue/cancel-consumer/{worker}?queue=offload.small",
        f"task/revoke/{next(iter(flower.tasks(batch)))}?terminate=true",
        f"task/send-task/{TASK}",
    ):
        assert flower.ask(f"/api/{path}", "POST")[0] == 403, path
    page.goto(f"{flower.url}/worker/{worker}")
    expect(page.get_by_text("offload.embed").first).to_be_attached()
    expect(page.get_by_text("Shut down")).to_have_count(0)
    assert _healthy(pool) == set(NODES)


@pytest.mark.slow
def test_it_comes_back_after_redis(pool: TestPool, flower: Flower, moved: Flower) -> None:
    """One that saw Redis go and one that started without it both show slices again soon after Redis is back."""
    for one in (flower, moved):
        eventually(partial(_sees_new_work, pool, one), "it shows slices again", every_s=LOOK_S)


def _sees_new_work(pool: TestPool, flower: Flower) -> bool:
    batch = pool.submit([{"category": "chat", "prompt": "Hello."}])
    pool.finished(batch)
    return bool(flower.tasks(batch))


@pytest.mark.slow
def test_it_is_moved_and_opened_on_purpose(pool: TestPool, flower: Flower, moved: Flower, page: Page) -> None:
    """With a prefix every page and what it loads is under it; with --writable and a chosen password a worker ends."""
    page.set_extra_http_headers({"Authorization": basic(moved.auth)})
    failed: list[str] = []
    page.on("response", lambda reply: failed.append(reply.url) if reply.status >= 400 else None)
    page.goto(f"{moved.url}{PREFIX}/")
    expect(page.locator("#workers-table")).to_contain_text("gpu2/sim")
    page.get_by_role("link", name="Tasks").click()
    page.get_by_role("link", name="Broker").click()
    expect(page.locator("#queue-table")).to_contain_text("offload.coder")
    assert failed == []
    assert moved.ask("/broker")[0] == 404
    assert moved.ask(f"{PREFIX}/broker", auth=flower.auth)[0] == 401
    worker = quote("celery@gpu2/sim", safe="")
    assert moved.ask(f"{PREFIX}/worker/{worker}")[0] == 200, "as a person would; Flower asks the worker what it is"
    assert moved.ask(f"{PREFIX}/api/worker/shutdown/{worker}", "POST")[0] == 200
    eventually(lambda: {w.node for w in reading.all_workers(pool.db)} == {"gpu1"}, "the worker has left")


@pytest.mark.slow
def test_a_port_in_use_is_one_clear_line(pool: TestPool) -> None:
    """A port that somebody has, and an address that is nobody's here: exit 1, one line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = executable(pool.environment, "flower", "--port", str(port))
    assert (ran.code, ran.stdout) == (1, b"")
    assert len(ran.stderr.splitlines()) == 1, ran.stderr
    assert f"127.0.0.1:{port}" in ran.stderr


def picture(page: Page, name: str) -> None:
    """What a person would see, for a person to look at."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"flower-{name}.png")

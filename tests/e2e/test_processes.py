"""Several processes behind one port: what each answers, what all share, and what dies with whom."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e import plain
from tests.e2e.conftest import SMALL_PARTS
from tests.e2e.program import Program
from tests.e2e.videos import (
    MP4,
    everything,
    pieces,
    problem,
    read,
    see,
    send_parts,
    start,
    upload,
)
from tests.openai_server import openai_server, translated
from tests.support import DEADLINE_SECONDS, PROJECT, eventually, unused_port

COUNT = 3
SEVERAL = {"BACKLOT_PROCESSES": str(COUNT), **SMALL_PARTS}
# So that one process without any is as good as impossible: three times (2/3)^60.
CONNECTIONS = 60
LEAST_OF_EACH = 5
MakeProgram = Callable[..., Program]
_numbers = count(1)


@pytest.fixture(scope="module")
def several(short_dir: Path) -> Iterator[Program]:
    program = Program(short_dir / f"several-{next(_numbers)}", unused_port(), SEVERAL)
    try:
        yield program.start()
        assert program.stop() == 0
        assert "request_broke" not in program.complained
    finally:
        program.clean_up()


def others(program: Program) -> list[psutil.Process]:
    """The processes that serve beside the first one: its children, or forked as it is itself."""
    found, first = [], psutil.Process(program.process.pid)
    for each in [*first.children(), *first.parents()[0].children()]:
        # One that was killed may not be gone yet.
        with suppress(psutil.Error):
            if each != first and each.cwd() == str(program.home):
                found.append(each)
    return found


def pids(program: Program) -> list[int]:
    return [program.process.pid, *(each.pid for each in others(program))]


def serving(program: Program) -> dict[int, int]:
    """Which process has which connection, by the client's port."""
    found = {}
    for pid in pids(program):
        # One that was killed may be gone meanwhile.
        with suppress(psutil.Error):
            for each in psutil.Process(pid).net_connections("tcp4"):
                if each.raddr and each.laddr.port == program.port:
                    found[each.raddr.port] = pid
    return found


def local_port(answer: httpx.Response) -> int:
    port: int = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
    return port


def whose(program: Program, connection: socket.socket) -> int:
    """The process that has accepted a connection."""
    port = connection.getsockname()[1]
    return eventually(lambda: serving(program).get(port, 0))


def client_of_each(program: Program, user: str | None = "alice") -> dict[int, httpx.Client]:
    """Clients that keep a connection to one process each, by its pid, the first one's first.

    A connection on which nothing is asked for some seconds is closed; its client gets another one.
    """
    return {pid: client_of(program, pid, user) for pid in pids(program)}


def client_of(program: Program, pid: int, user: str | None = "alice") -> httpx.Client:
    """A client that keeps a connection to this process."""
    while True:
        client = program.client(user)
        if connected(program, client) == pid:
            return client


def connected(program: Program, client: httpx.Client) -> int:
    """The process that answers a client now."""
    port = local_port(client.get("/healthz"))
    return serving(program)[port]


def metrics(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    page = client.get("/metrics")
    assert page.status_code == 200, page.text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def answered(client: httpx.Client, route: str) -> float:
    """How many requests of a route all processes have answered with 200."""
    labels = frozenset({("method", "GET"), ("route", route), ("status", "200")})
    return metrics(client).get(("backlot_http_requests_total", labels), 0)


def number(client: httpx.Client, name: str) -> float:
    return metrics(client)[name, frozenset()]


def ready_again(program: Program, but: int) -> list[int]:
    """The pids of all processes, once another one answers in place of that one."""

    def answering() -> list[int]:
        found = pids(program)
        whole = len(found) == COUNT and but not in found
        return found if whole and set(found) <= set(serving_at_all(program)) else []

    return eventually(answering)


def serving_at_all(program: Program) -> set[int]:
    """The processes that listen."""
    return {
        pid
        for pid in pids(program)
        for each in psutil.Process(pid).net_connections("tcp4")
        if each.status == psutil.CONN_LISTEN
    }


def test_connections_are_spread_over_all_processes(several: Program) -> None:
    assert len(pids(several)) == COUNT
    clients = [several.client() for _ in range(CONNECTIONS)]
    ports = [local_port(client.get("/healthz")) for client in clients]
    found = serving(several)
    shares = Counter(found[port] for port in ports)
    assert set(shares) == set(pids(several))
    assert min(shares.values()) >= LEAST_OF_EACH, shares


def test_every_process_tells_the_metrics_of_all(several: Program) -> None:
    clients = client_of_each(several)
    before = answered(clients[several.process.pid], "/readyz")
    for client in clients.values():
        for _ in range(2):
            assert client.get("/readyz").status_code == 200
    for client in clients.values():
        assert answered(client, "/readyz") - before == 2 * COUNT
        assert number(client, "backlot_processes") == COUNT
    resident = sum(psutil.Process(pid).memory_info().rss for pid in pids(several))
    told = number(clients[several.process.pid], "process_resident_memory_bytes")
    assert 0.8 * resident < told < 1.2 * resident


def test_what_one_process_acknowledges_every_other_shows(several: Program) -> None:
    clients = client_of_each(several)
    video = upload(several.client("owner"))
    for writer in clients.values():
        for method, liked in (("POST", True), ("DELETE", False)):
            done = writer.request(method, f"/videos/{video}/like")
            wanted = {
                "Backlot-Min-Position": done.headers["Backlot-Position"],
                "Backlot-Timeout-Ms": "20000",
            }
            for reader in clients.values():
                shown = read(reader.get(f"/videos/{video}/like", headers=wanted))
                assert shown == {"hasLiked": liked, "likesCount": int(liked)}


def test_an_upload_may_pass_through_all_processes(several: Program) -> None:
    first, *rest = client_of_each(several, "owner").values()
    started = start(first)
    parts = send_parts(started)
    # Completed by two at once, and aborted by the third.
    path = f"/uploads/{started['uploadId']}"
    with ThreadPoolExecutor(COUNT) as pool:
        body = {"parts": parts}
        completions = [pool.submit(each.post, f"{path}/complete", json=body) for each in rest]
        abort = pool.submit(first.delete, path)
        told = [each.result() for each in completions]
    completed = {answer.status_code for answer in told} == {200}
    if completed:
        problem(abort.result(), 409)
        assert told[0].json() == told[1].json()
        see(first, told[0])
        watched = read(first.post(f"/videos/{told[0].json()['videoId']}/watch"))
        assert plain.get(watched["url"]).content == MP4
    else:
        assert abort.result().is_success
        assert [answer.status_code for answer in told] == [409, 409]


def test_a_key_of_idempotency_counts_in_all_processes(several: Program) -> None:
    clients = client_of_each(several)
    video = upload(several.client("owner"))
    told = [
        client.post(
            f"/videos/{video}/comments",
            json={"content": "Once, whoever is asked."},
            headers={"Idempotency-Key": f"once-{video}"},
        )
        for client in clients.values()
    ]
    assert {answer.json()["commentId"] for answer in told} == {told[0].json()["commentId"]}
    reader = several.client("alice")
    see(reader, told[-1])
    assert len(everything(reader, f"/videos/{video}/comments")) == 1


def test_a_killed_process_is_replaced_and_takes_nothing_with_it(several: Program) -> None:
    clients = client_of_each(several)
    first = several.process.pid
    victim = next(pid for pid in clients if pid != first)
    video = upload(several.client("owner"))
    ended, begun = threading.Event(), threading.Event()
    acknowledged: list[str] = []

    def comment() -> None:
        """Until the process is gone, which has acknowledged what it says."""
        try:
            for each in count():
                text = f"Number {each}"
                answer = client.post(f"/videos/{video}/comments", json={"content": text})
                assert answer.status_code == 201, answer.text
                acknowledged.append(text)
                if each == 5:
                    begun.set()
                if connected(several, client) != victim:
                    return
        except (httpx.HTTPError, KeyError, psutil.Error):
            pass
        finally:
            ended.set()

    counted = answered(clients[first], "/healthz")
    restarts = number(clients[first], "backlot_process_restarts_total")
    client = client_of(several, victim)
    writer = threading.Thread(target=comment)
    writer.start()
    assert begun.wait(DEADLINE_SECONDS)
    survivors = {pid: client_of(several, pid) for pid in clients if pid != victim}
    os.kill(victim, signal.SIGKILL)
    assert ended.wait(DEADLINE_SECONDS)
    writer.join()
    for pid, survivor in survivors.items():
        assert connected(several, survivor) == pid
    ready_again(several, victim)
    after = client_of_each(several)
    assert len(after) == COUNT
    assert number(after[first], "backlot_process_restarts_total") == restarts + 1
    # A sum that falls would look like growth to Prometheus.
    assert answered(after[first], "/healthz") >= counted
    said = after[first].post(f"/videos/{video}/comments", json={"content": "Last"})
    see(after[first], said)
    shown = {each["content"] for each in everything(after[first], f"/videos/{video}/comments")}
    assert shown >= {*acknowledged, "Last"}
    assert len(shown) <= len(acknowledged) + 2


@pytest.mark.parametrize(
    ("sign", "source"),
    [
        # Where the source is called otherwise, nothing is forked: each is an interpreter.
        (signal.SIGINT, f"{PROJECT}/"),
        (signal.SIGTERM, str(PROJECT)),
    ],
    ids=["interpreters", "forked"],
)
def test_one_stop_ends_all_of_them(
    make_program: MakeProgram, sign: signal.Signals, source: str
) -> None:
    program = make_program(**SEVERAL, PYTHONPATH=source).start()
    beside = others(program)
    assert len(beside) == COUNT - 1
    # Who presses Ctrl-C sends it to all of a group.
    group = os.getpgid(program.process.pid)
    assert all(os.getpgid(each.pid) != group for each in beside)
    assert program.stop(sign) == 0
    assert not any(each.is_running() for each in beside)
    assert program.complained.count("stopping …") == 1
    assert "process_killed" not in program.complained
    assert not (program.data / "processes").exists()


@contextmanager
def parts_begun(program: Program) -> Iterator[tuple[list[socket.socket], bytes]]:
    """Connections over which every process has received a part but for its last byte, and that."""
    started = start(program.client("owner"))
    [piece, *_], [part, *_] = pieces(MP4, started), started["parts"]
    head = b"PUT %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    whole = head % (httpx.URL(part["url"]).raw_path, len(piece)) + piece
    with ExitStack() as stack:
        begun: dict[int, socket.socket] = {}
        while begun.keys() != set(pids(program)):
            address = ("127.0.0.1", program.port)
            connection = stack.enter_context(socket.create_connection(address, DEADLINE_SECONDS))
            begun[whose(program, connection)] = connection
        for connection in begun.values():
            connection.sendall(whole[:-1])
        spools = program.data / "objects" / "tmp"
        eventually(lambda: len(list(spools.iterdir())) == COUNT)
        yield list(begun.values()), whole[-1:]


def test_a_stop_lets_every_process_finish_what_was_begun(make_program: MakeProgram) -> None:
    program = make_program(**SEVERAL).start()
    with parts_begun(program) as (connections, rest):
        program.process.send_signal(signal.SIGTERM)
        eventually(lambda: not serving_at_all(program))
        for connection in connections:
            connection.sendall(rest)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert program.wait() == 0


def test_a_second_ctrl_c_ends_all_of_them_at_once(make_program: MakeProgram) -> None:
    program = make_program(**SEVERAL).start()
    beside = others(program)
    with parts_begun(program):
        program.process.send_signal(signal.SIGINT)
        eventually(lambda: "stopping …" in program.complained)
        # All wait for the rest of the parts, for ten seconds.
        assert program.process.poll() is None
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 130
        _, alive = psutil.wait_procs(beside, timeout=DEADLINE_SECONDS)
        assert not alive


def test_a_stop_during_the_start_leaves_nobody_behind(make_program: MakeProgram) -> None:
    program = make_program(**SEVERAL).launch()
    beside = eventually(lambda: others(program))
    assert program.stop() == 0
    assert not any(each.is_running() for each in beside)
    assert "ready" not in program.said


def test_nobody_outlives_the_first_process(make_program: MakeProgram) -> None:
    program = make_program(**SEVERAL).start()
    client = program.client("alice")
    video = upload(program.client("owner"))
    assert client.post(f"/videos/{video}/like").is_success
    beside = others(program)
    program.kill()
    _, alive = psutil.wait_procs(beside, timeout=DEADLINE_SECONDS)
    assert not alive
    program.start()
    assert len(pids(program)) == COUNT
    reader = program.client("alice")
    shown = eventually(lambda: read(reader.get(f"/videos/{video}/like")))
    assert shown == {"hasLiked": True, "likesCount": 1}
    assert program.stop() == 0


def test_a_port_that_others_share_is_taken(several: Program, make_program: MakeProgram) -> None:
    second = make_program(**SEVERAL)
    second.port = several.port
    assert second.launch().wait() == 4
    assert f"can't listen on 127.0.0.1:{several.port}" in second.complained
    assert several.client().get("/healthz").is_success


def test_a_limit_holds_for_all_processes_together(make_program: MakeProgram) -> None:
    burst = 30
    # So slow to come back that no machine is slow enough to get another token meanwhile.
    limits = {"RATE_LIMITS": "on", "RATE_LIMIT_WRITE": f"0.01/{burst}"}
    program = make_program(**SEVERAL, **limits).start()
    video = upload(program.client("owner"))
    clients = client_of_each(program)
    told = Counter(
        client.post(f"/videos/{video}/like").status_code
        for _ in range(burst)
        for client in clients.values()
    )
    assert told == {200: burst, 429: (COUNT - 1) * burst}
    assert program.stop() == 0


def test_what_readers_lack_is_translated_whoever_is_asked(make_program: MakeProgram) -> None:
    with openai_server() as provider:
        variables = {"OPENAI_BASE_URL": provider.url, "TRANSLATION_TARGETS": "de,fr"}
        provider.otherwise = lambda call: translated(f"[{call.target}] {call.text}", "es")
        program = make_program(**SEVERAL, **variables).start()
        video = upload(program.client("owner"))
        for pid in pids(program):
            client = client_of(program, pid)
            spanish = f"¡Qué bonito es este vídeo número {pid}, señores!"
            see(client, client.post(f"/videos/{video}/comments", json={"content": spanish}))

            def newest(client: httpx.Client = client) -> str | None:
                path = f"/videos/{video}/comments"
                item = read(client.get(path, params={"lang": "fr"}))["items"][0]
                text: str | None = item.get("translatedText")
                return text

            assert eventually(newest) == f"[fr] {spanish}"
            assert connected(program, client) == pid
        assert program.stop() == 0

"""`manage.py benchmark serve`: answers over the API beside what the machine could do at best, and what people write.

A real gunicorn on the loopback, as the Procfile starts it, asked by clients in a process of their own. In the same run
and in turns: (a) decoding and the bare compiled network in a loop, one process on all processors, which is the limit;
(b) `model.predict` of Keras behind a small view under the same gunicorn. Then versions are switched under load, and
memory is watched over many answers and switches.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from knox.models import AuthToken
from PIL import Image

from datasets import imaging, phantoms
from registry import artifacts, exporting
from registry.models import Activation, Deployment, ModelVersion
from registry.openvino_runtime import load_openvino
from xrayplatform.benchmarks import SANDBOX, BenchmarkFailed, register
from xrayplatform.conditions import Condition
from xrayplatform.teams import Team, sync_roles

from .engine import load
from .load import BUSY, Specification

PARTS = ("speed", "swap", "memory")
NETWORKS = ("DenseNet121", "Custom_CNN")
KINDS = ("jpeg", "full", "dicom")
CLIENTS = (1, 8, 32)
# The aims, by the design: of (a) and (b) on the small JPEG.
MOST_OF_LIMIT, MORE_MS, SHARE_OF_LIMIT, TIMES_KERAS, MOST_OF_CALM = 1.3, 5.0, 0.8, 6.0, 2.0
SWAP_CLIENTS = 20
SWAPS, MEMORY_SWAPS = 6, 50
SMALL_SIDE = 224
FULL_SIZE = (1200, 1500)
IMPORTER = "importer"
START_SECONDS = 90.0
MIB = 1024**2
BOUNDARY = "benchmark-of-serving"
# Answers of one version about one file are the same but for the order of additions.
SAME = 1e-4


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (default: all)")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="architectures, with commas between")
    parser.add_argument("--kinds", default=",".join(KINDS), help="files to send: jpeg (224 pixels), full, dicom")
    parser.add_argument("--images", help="a folder with real JPEG and DICOM files to send instead of made-up ones")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="of all measurements in turns (default 3)")
    parser.add_argument("--workers", type=int, default=settings.WEB_WORKERS, help="of gunicorn (default WEB_WORKERS)")
    parser.add_argument("--threads", type=int, default=settings.WEB_THREADS, help="of a worker (default WEB_THREADS)")
    parser.add_argument("--soak", type=int, default=2000, help="answers of the memory part (the aim is for 20,000)")


@register("serve", "answers over the API, switches of versions under load, and memory", _arguments)
def serve(options: dict[str, Any]) -> dict[str, Any]:
    wanted = _listed(options["parts"], PARTS)
    networks = _listed(options["networks"], NETWORKS)
    bench = _Bench(Path(os.environ[SANDBOX]), options)
    for network in networks:
        bench.add(network)
    files = bench.files(_listed(options["kinds"], KINDS))
    figures: dict[str, Any] = {"processors": os.cpu_count(), "workers": options["workers"]}
    figures["threads"] = options["threads"]
    with bench.platform() as server:
        if "speed" in wanted:
            figures["speed"] = {name: _speed(bench, server, name, files) for name in networks}
        if "swap" in wanted:
            figures["swap"] = {name: _swaps(bench, server, name, files["jpeg"]) for name in networks}
        if "memory" in wanted:
            figures["memory"] = _memory(bench, server, networks[-1], files["jpeg"], options["soak"])
    return figures | {"aims": _aims(figures)}


def _listed(text: str, known: tuple[str, ...]) -> list[str]:
    chosen = [name for name in text.split(",") if name]
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise BenchmarkFailed(f"{text!r} is not a list of {', '.join(known)}.")
    return chosen


# -- What is measured


@dataclass(frozen=True)
class _File:
    """A radiograph to send: its bytes, and the path of the form that sends it."""

    content: bytes
    form: Path
    plain: Path


class _Bench:
    """The versions, the user and the files of a measurement, in the sandbox."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder = folder / "serve"
        self.folder.mkdir()
        self.options = options
        self.versions: dict[str, list[ModelVersion]] = {}
        user = get_user_model().objects.create_superuser("benchmark")
        self.token = AuthToken.objects.create(user)[1]
        # Who imports sees no version of the team's, so that a package of one is new to them.
        self.team = Team.objects.create(name="benchmark")
        sync_roles()
        importer = get_user_model().objects.create_user(IMPORTER)
        importer.groups.set(Group.objects.filter(name="model manager"))

    def add(self, network: str) -> None:
        """A condition with three versions of a network, so that the next one is never warm; the first in service."""
        condition = Condition.objects.create(slug=_slug(network), name=network, team=self.team)
        self.versions[network] = [self._version(condition, network, seed) for seed in (1, 2, 3)]
        self.versions[network][0].activate(by=None, reason="benchmark")

    def _version(self, condition: Condition, network: str, seed: int) -> ModelVersion:
        folder = self.keras(network, seed).parent
        folder.mkdir()
        program = [sys.executable, "-m", "training.ml.untrained", network, str(folder), str(seed)]
        done = subprocess.run(program, cwd=settings.BASE_DIR, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkFailed(f"{network} could not be built: {done.stderr[-500:]}")
        sha256 = json.loads(done.stdout)["sha256"]
        staged = folder / "version"
        return ModelVersion.objects.register(
            condition,
            staged,
            sha256=sha256,
            manifest=artifacts.load_manifest(staged, sha256),
            by=None,
            dataset_name="none",
            dataset_digest="",
            split_digest="",
            origin="benchmark",
        )

    def keras(self, network: str, seed: int = 1) -> Path:
        return self.folder / f"{network}-{seed}" / "network.keras"

    def files(self, kinds: list[str]) -> dict[str, _File]:
        found = _real(Path(self.options["images"])) if self.options["images"] else _made(self.folder)
        return {kind: self._file(kind, found[kind]) for kind in {"jpeg", *kinds}}

    def _file(self, kind: str, content: bytes) -> _File:
        plain = self.folder / f"{kind}.bin"
        plain.write_bytes(content)
        return _File(content, self.folder / kind, plain)

    def form(self, file: _File, network: str) -> Path:
        """A multipart form that asks the network's condition about the file."""
        path = file.form.with_name(f"{file.form.name}-{_slug(network)}.form")
        fields = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="condition"\r\n\r\n{_slug(network)}\r\n'
        head = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        path.write_bytes((fields + head).encode() + file.content + f"\r\n--{BOUNDARY}--\r\n".encode())
        return path

    @contextmanager
    def platform(self) -> Iterator["_Server"]:
        environment = {"ALLOWED_HOSTS": "127.0.0.1", "HTTPS": "False", "WEB_WORKERS": str(self.options["workers"])}
        with _gunicorn("xrayplatform.wsgi", self.options, environment) as server:
            yield server

    def asks(self, server: "_Server", network: str, file: _File, clients: int, seconds: float) -> Specification:
        return Specification(
            port=server.port,
            path="/api/v1/predictions/",
            body=str(self.form(file, network)),
            headers={
                "Authorization": f"Token {self.token}",
                "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
            },
            clients=clients,
            seconds=seconds,
        )

    def start_import(self, version: ModelVersion) -> "subprocess.Popen[bytes]":
        """A package of the version on its way into the platform, as a queue worker imports one."""
        package = self.folder / "package.zip"
        exporting.FORMS["package"].write(version, package, by=None)
        manage = [sys.executable, str(settings.BASE_DIR / "manage.py"), "import_model", str(package), "--json"]
        options = ["--user", IMPORTER, "--new-condition", "--accept-unknown-key"]
        return subprocess.Popen([*manage, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def post(self, server: "_Server", path: str, **body: Any) -> None:
        """Raises BenchmarkFailed with what the API says against it."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/api/v1/{path}",
            json.dumps(body).encode(),
            {"Authorization": f"Token {self.token}", "Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=120).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            raise BenchmarkFailed(f"{path} was answered with {error.code}: {error.read()[:500]!r}") from error


def _slug(network: str) -> str:
    return network.lower().replace("_", "-")


def _made(folder: Path) -> dict[str, bytes]:
    """Phantoms: a chest of 224 pixels and of full size as JPEG, and a knee as DICOM."""
    chest, _, knee = phantoms.make_samples(folder / "phantoms", per_class=4)
    picture = Image.fromarray(imaging.read(min(chest.rglob("*.jpeg"))).grey)
    return {
        "jpeg": _jpeg(picture.resize((SMALL_SIDE, SMALL_SIDE))),
        "full": _jpeg(picture.resize(FULL_SIZE, Image.Resampling.BICUBIC)),
        "dicom": min(knee.rglob("*.dcm")).read_bytes(),
    }


def _jpeg(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _real(folder: Path) -> dict[str, bytes]:
    """The smallest and the largest JPEG below a folder, and the first DICOM file that can be read."""
    pictures = sorted((path for path in folder.rglob("*.jp*g")), key=lambda path: (path.stat().st_size, path))
    if not pictures:
        raise BenchmarkFailed(f"There is no JPEG file below {folder}.")
    small = next((path for path in pictures if Image.open(path).size == (SMALL_SIDE, SMALL_SIDE)), pictures[0])
    dicom = next((path for path in sorted(folder.rglob("*.dcm")) if _can_be_read(path)), None)
    if dicom is None:
        raise BenchmarkFailed(f"There is no DICOM file below {folder} that can be read.")
    return {"jpeg": small.read_bytes(), "full": pictures[-1].read_bytes(), "dicom": dicom.read_bytes()}


def _can_be_read(path: Path) -> bool:
    try:
        return imaging.read(path).width >= SMALL_SIDE
    except imaging.ImageError:
        return False


# -- Servers and clients


@dataclass(frozen=True)
class _Server:
    port: int
    master: psutil.Process

    @property
    def workers(self) -> list[psutil.Process]:
        return self.master.children()

    @property
    def memory(self) -> int:
        """Bytes of all workers together."""
        return sum(worker.memory_info().rss for worker in self.workers)

    @property
    def processor_seconds(self) -> float:
        """That all workers used together."""
        times = [worker.cpu_times() for worker in self.workers]
        return float(sum(time.user + time.system for time in times))


@contextmanager
def _gunicorn(application: str, options: dict[str, Any], environment: dict[str, str]) -> Iterator[_Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", application, "--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    command += ["--workers", str(options["workers"]), "--threads", str(options["threads"]), "--timeout", "120"]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(
        [*command, "--log-level", "error"],
        cwd=settings.BASE_DIR,
        env={**os.environ, **quiet, **environment},
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            _wait_for(port, process)
            yield _Server(port, psutil.Process(process.pid))
        finally:
            process.terminate()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise BenchmarkFailed("The web server did not start.")


def _start(asked: Specification) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "inference.load", asked.to_json()]
    return subprocess.Popen(command, cwd=settings.BASE_DIR, stdout=subprocess.PIPE, text=True)


def _rows(clients: "subprocess.Popen[str]") -> list[list[Any]]:
    with clients:
        answer, _ = clients.communicate()
    if clients.returncode:
        raise BenchmarkFailed("The clients ended with an error.")
    rows: list[list[Any]] = json.loads(answer)
    return rows


def _load(server: _Server, asked: Specification) -> "_Turn":
    before = server.processor_seconds
    rows = _rows(_start(asked))
    return _Turn.of(rows, asked.seconds, server.processor_seconds - before)


@dataclass(frozen=True)
class _Turn:
    """One measurement. latencies: milliseconds of what was answered. busy, failed: requests.

    processor_ms: that the server used for an answer, which other programs disturb less than the clock.
    """

    latencies: list[float]
    rate: float
    processor_ms: float
    busy: int = 0
    failed: int = 0

    @classmethod
    def of(cls, rows: list[list[Any]], seconds: float, processor_seconds: float) -> "_Turn":
        if not rows:
            raise BenchmarkFailed("Nothing was asked.")
        first = min(row[0] for row in rows)
        # The last answers come after nobody asks any more: the time until then counts.
        last = max(row[0] + row[1] for row in rows)
        answered = [1000 * row[1] for row in rows if row[2] == 201]
        busy = sum(row[2] == BUSY for row in rows)
        used = 1000 * processor_seconds / max(1, len(answered))
        rate = len(answered) / max(seconds, last - first)
        return cls(answered, rate, used, busy, len(rows) - len(answered) - busy)

    @property
    def p50(self) -> float:
        return float(np.percentile(self.latencies, 50)) if self.latencies else float("inf")


def _figures(turns: list[_Turn]) -> dict[str, Any]:
    """Percentiles over all turns together; the rate is the median turn's."""
    latencies = [value for turn in turns for value in turn.latencies]
    if not latencies:
        raise BenchmarkFailed("Not one request was answered.")
    return {
        **{f"p{share}_ms": round(float(np.percentile(latencies, share)), 1) for share in (50, 95, 99)},
        "per_second": round(statistics.median(turn.rate for turn in turns), 1),
        "processor_ms": round(statistics.median(turn.processor_ms for turn in turns), 1),
        "answers": len(latencies),
        "busy": sum(turn.busy for turn in turns),
        "failed": sum(turn.failed for turn in turns),
    }


# -- Speed


def _speed(bench: _Bench, server: _Server, network: str, files: dict[str, _File]) -> dict[str, Any]:
    options = bench.options
    keras_options = {**options, "threads": 4}
    with ExitStack() as stack:
        environment = {"NETWORK": str(bench.keras(network))}
        keras = stack.enter_context(_gunicorn("training.ml.predict_server", keras_options, environment))
        bare = _bare(bench.versions[network][0])
        return {
            kind: _speed_of(bench, server, keras, network, file, partial(bare, file.content))
            for kind, file in files.items()
        }


def _speed_of(
    bench: _Bench, server: _Server, keras: _Server, network: str, file: _File, bare: Callable[[], None]
) -> dict[str, Any]:
    seconds = bench.options["seconds"]

    def platform(clients: int, seconds: float) -> _Turn:
        return _load(server, bench.asks(server, network, file, clients, seconds))

    def people(clients: int, seconds: float) -> _Turn:
        return _load(keras, Specification(keras.port, "/", str(file.plain), {}, clients, seconds))

    ways = {"platform": platform, "keras": people}
    for way in ways.values():
        way(8, 2.0)
    alone: list[_Turn] = []
    turns: dict[tuple[str, int], list[_Turn]] = {(way, clients): [] for way in ways for clients in CLIENTS}
    for _ in range(bench.options["rounds"]):
        for clients in CLIENTS:
            alone.append(_loop(bare, seconds))
            for way, ask in ways.items():
                turns[way, clients].append(ask(clients, seconds))
    # By rounds: what else the machine does meets all of one round alike.
    limit = {clients: alone[index :: len(CLIENTS)] for index, clients in enumerate(CLIENTS)}
    return {
        "limit": _figures(alone),
        **{way: {str(count): _figures(turns[way, count]) for count in CLIENTS} for way in ways},
        "ratios": {
            "p50_at_1_to_limit": _ratio(turns["platform", 1], limit[1], lambda turn: turn.p50),
            "rate_at_8_to_limit": _ratio(turns["platform", 8], limit[8], lambda turn: turn.rate),
            "rate_at_8_to_keras": _ratio(turns["platform", 8], turns["keras", 8], lambda turn: turn.rate),
            # What the rates would be to each other where nothing else wants the processors.
            "limit_to_processor_at_8": _ratio(limit[8], turns["platform", 8], lambda turn: turn.processor_ms),
            "keras_to_processor_at_8": _ratio(turns["keras", 8], turns["platform", 8], lambda turn: turn.processor_ms),
        },
    }


def _ratio(ours: list[_Turn], theirs: list[_Turn], figure: Callable[[_Turn], float]) -> float:
    return round(statistics.median(figure(a) / figure(b) for a, b in zip(ours, theirs, strict=True)), 3)


def _loop(work: Callable[[], None], seconds: float) -> _Turn:
    latencies, begun, used = [], time.perf_counter(), time.process_time()
    while (start := time.perf_counter()) < begun + seconds:
        work()
        latencies.append(1000 * (time.perf_counter() - start))
    used = 1000 * (time.process_time() - used) / len(latencies)
    return _Turn(latencies, len(latencies) / (time.perf_counter() - begun), used)


def _bare(version: ModelVersion) -> Callable[[bytes], None]:
    """Decode one file as the platform does, and one pass through the graph as OpenVINO compiles it by itself."""
    core = load_openvino().Core()
    graph = core.read_model(str(version.folder / artifacts.OPENVINO[0]))
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(graph, "CPU", hints).create_infer_request()

    def answer(content: bytes) -> None:
        pixels = imaging.model_input(imaging.read(content), version.image_size, version.preprocessing["fit"])
        request.infer([pixels[None, ..., None].astype(np.float32) / np.float32(255)])

    return answer


# -- Switches under load


def _swaps(bench: _Bench, server: _Server, network: str, file: _File) -> dict[str, Any]:
    seconds = max(4.0, bench.options["seconds"])
    versions = bench.versions[network]
    _load(server, bench.asks(server, network, file, SWAP_CLIENTS, 2.0))
    calm = _load(server, bench.asks(server, network, file, SWAP_CLIENTS, seconds))
    known = {version.pk: _answer_of(version, file) for version in versions}
    pause = max(2.0, seconds / 2)
    asked = bench.asks(server, network, file, SWAP_CLIENTS, pause * (SWAPS + 1) + 2)
    used = server.processor_seconds
    clients = _start(Specification(**{**vars(asked), "answers": True}))
    time.sleep(pause)
    importing = bench.start_import(versions[0])
    for number in range(SWAPS):
        _switch(bench, server, network, back=number % 3 == 2)
        time.sleep(pause)
    rows = _rows(clients)
    with importing:
        imported = importing.wait() == 0
    during = _Turn.of(rows, asked.seconds, server.processor_seconds - used)
    service = _in_service(versions[0].condition)
    return {
        "clients": SWAP_CLIENTS,
        "switches": len([moment for moment, _ in service if moment > rows[0][0]]),
        "imported": imported,
        "before": _figures([calm]),
        "during": _figures([during]),
        "p99_ratio": round(float(np.percentile(during.latencies, 99)) / float(np.percentile(calm.latencies, 99)), 2),
        **_judged(rows, service, known),
    }


def _switch(bench: _Bench, server: _Server, network: str, *, back: bool = False) -> None:
    """Activate the version after the one in service, or roll back to the one before."""
    deployment = Deployment.objects.get(condition__slug=_slug(network))
    if back:
        bench.post(server, f"versions/{deployment.active_id}/rollback/", reason="benchmark")
        return
    keys = [version.pk for version in bench.versions[network]]
    following = keys[(keys.index(deployment.active_id) + 1) % len(keys)]
    bench.post(server, f"versions/{following}/activate/", reason="benchmark")


def _answer_of(version: ModelVersion, file: _File) -> list[float]:
    """What a version says about a file, computed here and not by the server."""
    pixels = imaging.model_input(imaging.read(file.content), version.image_size, version.preprocessing["fit"])
    return [float(value) for value in load(version.folder, version.sha256).answer(pixels[None])[0]]


def _in_service(condition: Condition) -> list[tuple[float, int]]:
    """From when on (Unix time) which version was in service."""
    history = Activation.objects.filter(condition=condition).order_by("pk").values_list("at", "to_version_id")
    return [(at.timestamp(), version) for at, version in history]


def _judged(rows: list[list[Any]], service: list[tuple[float, int]], known: dict[int, list[float]]) -> dict[str, Any]:
    """Answers that are not those of the version they name, that no version in service can have given, and late ones.

    late: by the version before, while a process was still loading the new one. A version that was in service neither
    during the request nor directly before it is wrong.
    """
    mixed = wrong = 0
    late: list[float] = []
    for began, seconds, status, answer in rows:
        if status != 201:
            continue
        version = answer["version"]
        said = list(answer["probabilities"].values())
        mixed += not np.allclose(said, known[version], atol=SAME)
        delay = delay_of(service, version, began, began + seconds)
        wrong += delay is None
        if delay:
            late.append(delay)
    return {
        "mixed_answers": mixed,
        "answers_of_no_version_in_service": wrong,
        "late_answers": len(late),
        "latest_seconds": round(max(late, default=0.0), 2),
    }


def delay_of(service: list[tuple[float, int]], version: int, began: float, ended: float) -> float | None:
    """Seconds from when a version left service to when a request began that it answered; 0 where it was in service.

    service: from when on which version was, in order. None where the version was not in service during the request, nor
    the one before what was.
    """
    ends = [moment for moment, _ in service[1:]] + [float("inf")]
    spans = [(start, end, name) for (start, name), end in zip(service, ends, strict=True)]
    during = [index for index, (start, end, _) in enumerate(spans) if start <= ended and end >= began]
    if any(spans[index][2] == version for index in during):
        return 0.0
    before = [index - 1 for index in during if index > 0 and spans[index - 1][2] == version]
    return began - spans[before[0]][1] if before else None


# -- Memory


def _memory(bench: _Bench, server: _Server, network: str, file: _File, answers: int) -> dict[str, Any]:
    """Of all workers together, in MiB, over answers and then over switches."""
    quarter = max(1, answers // 4)
    asked = bench.asks(server, network, file, 8, 3600.0)
    over_answers = []
    for _ in range(5):
        _rows(_start(Specification(**{**vars(asked), "requests": quarter})))
        over_answers.append(round(server.memory / MIB, 1))
    over_switches = [over_answers[-1]]
    for _ in range(MEMORY_SWAPS):
        _switch(bench, server, network)
        # Enough that every worker is asked and switches.
        _rows(_start(Specification(**{**vars(asked), "requests": 32})))
        over_switches.append(round(server.memory / MIB, 1))
    return {
        "answers": 5 * quarter,
        "over_answers_mib": over_answers,
        "switches": MEMORY_SWAPS,
        "over_switches_mib": over_switches[::10],
        "growth_over_answers": round(over_answers[-1] / over_answers[0], 3),
        "growth_over_switches": round(over_switches[-1] / over_switches[10], 3),
    }


# -- Aims


def _aims(figures: dict[str, Any]) -> list[dict[str, Any]]:
    return [*_speed_aims(figures.get("speed", {})), *_swap_aims(figures.get("swap", {})), *_memory_aims(figures)]


def _aim(what: str, found: float, most: float | None = None, least: float | None = None) -> dict[str, Any]:
    met = (most is None or found <= most) and (least is None or found >= least)
    limits = {name: value for name, value in (("at_most", most), ("at_least", least)) if value is not None}
    return {"aim": what, "found": round(found, 3), **limits, "met": met}


def _speed_aims(speed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for network, kinds in speed.items():
        found = kinds["jpeg"]
        most = MOST_OF_LIMIT * found["limit"]["p50_ms"] + MORE_MS
        yield _aim(f"{network}: p50 at one client, ms", found["platform"]["1"]["p50_ms"], most=round(most, 1))
        ratios = found["ratios"]
        # A network that answers in a millisecond leaves nothing for users, records and the disk.
        if network == "DenseNet121":
            share = ratios["rate_at_8_to_limit"]
            yield _aim(f"{network}: rate at 8 clients, of the limit", share, least=SHARE_OF_LIMIT)
            yield _aim(f"{network}: rate at 8 clients, times Keras", ratios["rate_at_8_to_keras"], least=TIMES_KERAS)


def _swap_aims(swap: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for network, found in swap.items():
        yield _aim(f"{network}: p99 during switches, of before", found["p99_ratio"], most=MOST_OF_CALM)
        yield _aim(f"{network}: failed requests during switches", found["during"]["failed"], most=0)
        unfit = found["mixed_answers"] + found["answers_of_no_version_in_service"]
        yield _aim(f"{network}: answers mixed or of no version in service", unfit, most=0)


def _memory_aims(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "memory" in figures:
        found = figures["memory"]
        yield _aim("memory over answers, last to first", found["growth_over_answers"], most=1.05)
        yield _aim("memory over switches, last to tenth", found["growth_over_switches"], most=1.05)

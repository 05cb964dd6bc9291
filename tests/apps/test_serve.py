"""`ancestral serve`: the images are the command's to the byte, whoever else draws; nothing that comes in breaks it."""

import asyncio
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, run_command

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("sklearn")

from ancestral.apps.server import (  # noqa: E402
    actions,
    batched_network,
    data_uri,
    main,
    nearest,
    schemas,
    security,
    session,
)
from ancestral.apps.server import events as stream  # noqa: E402
from ancestral.apps.server.app import create_app  # noqa: E402
from ancestral.apps.server.batched_network import Calls, Shared, rounding_alike  # noqa: E402
from ancestral.apps.server.job import Record  # noqa: E402
from ancestral.apps.server.job_queue import Full, JobQueue, Limits  # noqa: E402
from ancestral.apps.server.session import open_served_run  # noqa: E402
from ancestral.data import load  # noqa: E402
from ancestral.data.dataset import DataOptions  # noqa: E402
from ancestral.diffusion.processes.streams import Streams  # noqa: E402
from ancestral.errors import UserError  # noqa: E402
from ancestral.evaluation import features  # noqa: E402
from ancestral.runs.sampling_options import SamplingOptions  # noqa: E402
from ancestral.runtime import system  # noqa: E402
from ancestral.sampling.sampler import Sampler  # noqa: E402


@contextmanager
def serving_at(run, limits=None, rules=None, average_width=None):
    """The real server in a thread, and a client of it."""
    before = set(threading.enumerate())
    served = open_served_run(run, "cpu", average_width)
    jobs = JobQueue(served.calls, limits or Limits())
    listening = main.listen("127.0.0.1", 0)
    server = main.Server(main.configured(create_app(served, jobs, rules or security.Rules())), jobs)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = main.url_of(listening, "127.0.0.1", None)
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        try:
            yield SimpleNamespace(client=client, url=url, jobs=jobs, served=served, port=listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
            listening.close()
            assert not thread.is_alive()
            until(lambda: set(threading.enumerate()) <= before)  # no thread is left behind


@pytest.fixture(scope="module")
def live(trained_run):
    with serving_at(trained_run) as server:
        yield server


@pytest.fixture
def live_in_colour(colour_run):
    """It goes before the other server starts more threads."""
    with serving_at(colour_run) as server:
        yield server


def test_streams_are_counted_before_they_open(trained_run):
    """Many that are asked for at once, before the first is sent, are counted all the same."""

    async def asked():
        served = SimpleNamespace(calls=SimpleNamespace(walks=lambda by: None, close=lambda: None))
        jobs, go = JobQueue(served.calls, Limits()), threading.Event()
        record = jobs.submit(lambda record: {"waited": go.wait(20)}, 1)
        streams = [stream.EventStream(record, jobs, 0) for _ in range(stream.MOST)]
        counted = len(record.watchers)

        async def gone(message):
            raise OSError

        for one in streams:  # however they end, they are not counted any more
            with suppress(Exception):
                await one({"type": "http", "asgi": {"spec_version": "2.4"}}, None, gone)
        go.set()
        jobs.close()
        return counted, record.watchers

    assert asyncio.run(asked()) == (stream.MOST, [])


def test_the_ninth_stream_is_refused(live):
    job = submit(live, "draw", seed=1, images=64, steps=1000)
    with ThreadPoolExecutor(20) as pool:

        def opened(_):
            with (
                httpx.Client(base_url=live.url, timeout=60, trust_env=False) as client,
                client.stream("GET", f"/api/jobs/{job}/events") as answer,
            ):
                if answer.status_code == 200:
                    both.wait(30)
                return answer.status_code

        both = threading.Event()
        asked = [pool.submit(opened, number) for number in range(20)]
        until(lambda: sum(one.done() for one in asked) == 20 - stream.MOST)
        both.set()
        codes = sorted(one.result() for one in asked)
    live.client.delete(f"/api/jobs/{job}")
    assert codes == [200] * stream.MOST + [429] * (20 - stream.MOST)


def test_the_report_of_the_run_is_there_once_it_is_made(live):
    report = live.served.run / "report.html"
    command = live.client.get("/api/model").json()["report"]
    assert shlex.split(command) == ["ancestral", "explain", str(live.served.run), "--out", str(report)]
    answer = live.client.get("/report")
    assert answer.status_code == 404
    assert command in answer.json()["detail"]
    report.write_text("<p>measured</p>")
    try:
        assert live.client.get("/api/model").json()["report"] is True
        answer = live.client.get("/report")
        assert answer.text == "<p>measured</p>"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "script-src" not in policy
    finally:
        report.unlink()


def follow(server, job, after=None, most=None):
    """The (id, name, data) of a job's events, at most so many."""
    found = []
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    with server.client.stream("GET", f"/api/jobs/{job}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        reply = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            reply[name] = value
            if not line and "event" in reply:
                found.append((int(reply["id"]), reply["event"], json.loads(reply["data"])))
                reply = {}
                if len(found) == most:
                    break
    return found


def submit(server, name, **body):
    answer = server.client.post(f"/api/{name}", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/api/jobs/{answer.json()['job']}"
    return answer.json()["job"]


def result(server, name, **body):
    *_, (_, ending, reply) = follow(server, submit(server, name, **body))
    assert ending == "done", reply
    return reply


def content(uri):
    return b64decode(uri.partition(",")[2])


def pixels_of(uri):
    return np.asarray(Image.open(BytesIO(content(uri))))


def uri_of(pixels, form="PNG"):
    file = BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, form)
    return f"data:image/{form.lower()};base64,{b64encode(file.getvalue()).decode()}"


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
HALF = np.where(np.arange(64).reshape(8, 8) < 32, 255, 0)
SLOW = {"seed": 0, "images": 1, "steps": 1000}  # some seconds of work


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 3, "images": 5, "steps": 6},
        {"seed": 4, "images": 1, "steps": 5, "solver": "dpm++2m"},
        {"seed": 0, "images": 17, "steps": 4, "solver": "euler-ancestral"},
        {"seed": 2**32 - 1, "images": 2, "steps": 3, "eta": 0.5},
    ],
    ids=str,
)
def test_a_draw_is_the_commands_to_the_byte(live, tmp_path, options):
    reply = result(live, "draw", **options)
    arguments = [
        part for name, value in options.items() for part in (f"--{name.replace('images', 'num-images')}", value)
    ]
    assert run_command("sample", live.served.run, *arguments, "--out", tmp_path / "a", "--device", "cpu").exit_code == 0
    files = drawn_in(tmp_path / "a")
    assert list(map(content, reply["images"])) == files
    pixels = np.stack([np.asarray(Image.open(BytesIO(file)))[..., None] for file in files])
    assert reply["sha256"] == sha256(pixels.tobytes()).hexdigest()
    program, *again = shlex.split(reply["again"])
    assert program == "ancestral"
    assert run_command(*again, "--out", tmp_path / "b", "--device", "cpu").exit_code == 0
    assert drawn_in(tmp_path / "b") == files


def edited(server, folder, **more):
    """An inpainting and a morph, each compared with what its command writes in this folder."""
    inpainting = {"image": uri_of(GREY), "mask": uri_of(HALF), "seed": 5, "images": 3, "steps": 8, **more}
    morphing = {"a": uri_of(GREY), "b": uri_of(GREY.T), "t": 400, "frames": 4, "steps": 9, "seed": 6, **more}
    for name, pixels in (("image", GREY), ("a", GREY), ("b", GREY.T.copy()), ("mask", HALF.astype(np.uint8))):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    found = []
    for number, reply in enumerate([result(server, "inpaint", **inpainting), result(server, "morph", **morphing)]):
        words = [str(folder / word) if word.endswith(".png") else word for word in shlex.split(reply["again"])[1:]]
        words[words.index("--out") + 1] = str(folder / f"{number}.png")
        assert run_command(*words, "--device", "cpu").exit_code == 0
        assert list(map(content, reply["images"])) == drawn_in(folder / str(number), "*.png")
        found.append(reply)
    return found


def drawn_in(folder, pattern="0*.png"):
    return [path.read_bytes() for path in sorted(folder.glob(pattern))]


def test_edits_are_the_commands_to_the_byte(live, tmp_path):
    inpainted, _ = edited(live, tmp_path)
    for uri in inpainted["images"]:
        assert np.array_equal(pixels_of(uri)[HALF == 0], GREY[HALF == 0])


def test_another_average_is_in_the_command_and_in_no_file(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run", ignore=shutil.ignore_patterns("codec"))
    with serving_at(run, average_width=0.2) as server:
        reply = result(server, "draw", seed=1, images=2, steps=4)
        edited(server, tmp_path)
        refusal = server.client.post("/api/compress", json={"image": uri_of(GREY)})
        assert (refusal.status_code, "--average-width" in refusal.json()["detail"]) == (422, True)
    assert not (run / "codec").exists()
    for name, words in (
        ("same", shlex.split(reply["again"])[1:]),
        ("own", ["sample", run, "--num-images", 2, "--steps", 4, "--seed", 1]),
    ):
        assert run_command(*words, "--out", tmp_path / name, "--device", "cpu").exit_code == 0
    drawn = list(map(content, reply["images"]))
    assert drawn_in(tmp_path / "same") == drawn != drawn_in(tmp_path / "own")


def test_companions_change_no_byte(live):
    asked = [{"seed": seed, "images": images, "steps": 8} for seed in (1, 2) for images in (1, 2, 5, 7, 17)]
    asked += [{"seed": 1, "images": 5, "steps": 6, "solver": "heun"}, {"seed": 9, "images": 6, "steps": 7, "eta": 1}]
    alone = [result(live, "draw", **options)["sha256"] for options in asked]
    before = dict(live.served.calls.counted)
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda options: result(live, "draw", **options)["sha256"], asked))
    assert together == alone
    joined = {size: count - before.get(size, 0) for size, count in live.served.calls.counted.items() if size > 1}
    kinds = [kind for size, kind in live.served.alike.items() if size in (5, 6, 7)]
    if len(set(kinds)) < len(kinds):
        assert sum(joined.values()) > 0


def test_only_batches_that_round_alike_are_joined():
    parity = rounding_alike(
        lambda x, time: x * (1 + len(x) % 2), {"x": torch.ones(1, 3), "time": torch.ones(1)}, range(1, 9)
    )
    assert len({parity[size] for size in (1, 3, 5, 7)}) == len({parity[size] for size in (2, 4, 6, 8)}) == 1
    assert parity[1] != parity[2]

    def uneven(x, time):
        return x + torch.arange(len(x))[:, None] // 4

    assert set(rounding_alike(uneven, {"x": torch.ones(1, 3), "time": torch.ones(1)}, range(1, 9))) == {1, 2, 3, 4}


@pytest.mark.parametrize(("alike", "sizes"), [({1: 0, 3: 0, 8: 0}, {1, 3, 8}), ({1: 0, 3: 1, 8: 2}, {1}), ({}, {1})])
def test_calls_are_joined_and_come_back_to_who_asked(alike, sizes):
    seen = []

    def network(x, time, labels):
        seen.append(len(x))
        return x * time[:, None] + labels[:, None]

    calls = Calls()
    shared = Shared(torch.nn.Identity(), calls, alike)
    shared.network = SimpleNamespaceNetwork(network)
    calls.walks(6)
    generator = np.random.default_rng(0)
    asked = [tuple(torch.from_numpy(generator.normal(size=s)) for s in ((1, 4), (1,), (1,))) for _ in range(60)]
    with ThreadPoolExecutor(6) as pool:
        outputs = list(pool.map(lambda one: shared(one[0], one[1], labels=one[2]), asked))
    calls.close()
    for (x, time_, labels), output in zip(asked, outputs, strict=True):
        assert torch.equal(output, x * time_[:, None] + labels[:, None])
    assert set(seen) <= sizes
    assert (max(seen) > 1) == (sizes != {1})


class SimpleNamespaceNetwork(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, **inputs):
        return self.function(**inputs)


def test_a_network_that_fails_fails_its_callers_only():
    def network(x, time):
        if float(x.sum()) == 0:
            raise ValueError("nothing")
        return x

    calls = Calls()
    shared = Shared(SimpleNamespaceNetwork(network), calls, {})
    with pytest.raises(ValueError, match="nothing"):
        shared(torch.zeros(1, 2), torch.zeros(1))
    assert shared(torch.ones(1, 2), torch.zeros(1)).sum() == 2
    calls.close()


def test_calls_in_float32_join_whatever_autocast_would_take():
    def call():
        return batched_network._Call(network, {"x": torch.ones(1, 2), "time": torch.ones(1)}, {})

    network = torch.nn.Identity()
    with torch.autocast("cpu", torch.float16, enabled=False):
        early = call()
    with torch.autocast("cpu", torch.bfloat16):
        lower = call()
    assert early.joins(call())
    assert not lower.joins(call())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory"), MemoryError()]
)
def test_measuring_which_sizes_round_alike_ends_in_time_and_where_memory_does(error):
    def network(x, time):
        if len(x) > 5:
            raise error
        return x

    example = {"x": torch.ones(1, 3), "time": torch.ones(1)}
    assert set(rounding_alike(network, example)) == {1, 2, 3, 4, 5}
    assert set(rounding_alike(network, example, seconds=0)) == {1}
    error = RuntimeError("another")
    with pytest.raises(RuntimeError, match="another"):
        rounding_alike(network, example)


def test_what_a_model_or_a_machine_cannot_do_is_not_offered(tmp_path, monkeypatch):
    made = run_command(
        *("train", "digits", "--preset", "tiny", "--steps", 2, "--out", tmp_path / "run", *TINY),
        *("--set", "diffusion.T=4"),
    )
    assert made.exit_code == 0, made.output
    served = open_served_run(tmp_path / "run", "cpu", None)
    try:
        assert served.unable_to_inpaint == "takes 6 steps at least, and this model has 4"
        served.need_memory(64)
        monkeypatch.setattr(system, "free_memory", lambda: 100_000)
        served.need_memory(1)
        with pytest.raises(UserError, match="images: 64 images"):
            served.need_memory(64)
        with pytest.raises(UserError, match="images: 64 images"):
            actions.draw(served, schemas.Draw(seed=0, images=64, steps=2))
    finally:
        served.calls.close()


def test_sizes_that_round_alike_are_those_of_both_precisions(trained_run, monkeypatch):
    seen = []
    monkeypatch.setattr(session, "rounding_alike", lambda network, example, _: seen.append((network, example)) or {})
    served = open_served_run(trained_run, "cpu", None, "bfloat16")
    try:
        ((network, example),) = seen
        with torch.no_grad():
            low, exact = network(**example).chunk(2, 1)
            plain = served.model.network(**example)
        assert torch.equal(exact, plain)
        assert 0 < (low - plain).abs().max() < 0.1
    finally:
        served.calls.close()


def test_a_page_draws_in_its_precision_each_time_and_makes_files_in_the_weights_own(trained_run, monkeypatch):
    """Autocast is a thread's own, and the network computes in another than the walk; before, a walk wrapped it anew."""
    monkeypatch.setattr(session, "rounding_alike", lambda *given: {})
    expected, plain = (
        Sampler(trained_run, SamplingOptions(steps=2, precision=p), "cpu") for p in ("bfloat16", "device")
    )
    served = open_served_run(trained_run, "cpu", None, "bfloat16")
    network = served.model.network

    def drawn(by):
        (*_, last) = by.walk(range(3), {}, lambda _: None)
        return last.x_s

    try:
        first, second = (drawn(served.sampler(SamplingOptions(steps=2))) for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(first, drawn(expected))
        assert not torch.equal(first, drawn(plain))
        assert served.again("sample", "run").endswith("--device cpu --precision bfloat16")
        assert "precision" not in served.again("compress", "run")
        assert served.model.network is network
        x, t = torch.zeros(1, *served.shape), torch.tensor([5])
        assert torch.equal(served.model.output(x, t), plain.model.output(x, t))
    finally:
        served.calls.close()


def test_noise_is_the_forward_process(live):
    reply = live.client.post("/api/noise", json={"image": uri_of(GREY), "t": 300, "seed": 7}).json()
    schedule = live.served.model.schedule
    signal, scale = float(schedule.signal(300)), float(schedule.noise(300))
    assert reply["signal"] == pytest.approx(signal)
    assert reply["noise"] == pytest.approx(math.sqrt(1 - signal**2))
    assert reply["log_snr"] == pytest.approx(2 * math.log(signal / scale))
    assert np.array_equal(pixels_of(reply["image"]), GREY)
    eps = Streams(7, "forward", [0]).normal((8, 8)).numpy()[0]
    x0 = GREY / 127.5 - 1
    expected = ((signal * x0 + scale * eps).clip(-1, 1) + 1) * 127.5
    assert np.abs(pixels_of(reply["x_t"]) - expected).max() <= 0.5001
    predicted = pixels_of(reply["x0"]) / 127.5 - 1
    assert reply["mse"] == pytest.approx(np.square(predicted - x0).mean(), abs=0.01)
    schedules = live.client.get("/api/model").json()["schedule"]
    assert np.allclose(np.square(schedules["signal"]) + np.square(schedules["noise"]), 1, atol=1e-6)
    assert (schedules["t"][0], schedules["log_snr"][0], len(schedules["t"])) == (0, None, schedule.T + 1)


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_the_nearest_of_a_training_image_is_itself(kind, request, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # no features in it
    live = request.getfixturevalue("live" if kind == "grey" else "live_in_colour")
    source = "digits" if kind == "grey" else str(request.getfixturevalue("colour_digits"))
    train = load.load(source, DataOptions()).train
    for index in (0, 700):
        reply = live.client.post(
            "/api/nearest", json={"image": uri_of(train.images[index].squeeze()), "count": 4}
        ).json()
        assert "metric" in reply, reply
        first, *others = reply["neighbours"]
        assert (first["index"], first["distance"]) == (index, 0)
        assert np.array_equal(pixels_of(first["image"]), train.images[index].squeeze())
        exact = np.sqrt(np.square(train.images[:].astype(float) - train.images[index]).mean((1, 2, 3)))
        assert reply["metric"].startswith("root mean square")
        assert [one["distance"] for one in others] == pytest.approx(np.sort(exact)[1:4], abs=1e-3)
        assert [one["distance"] for one in others] == pytest.approx([exact[one["index"]] for one in others], abs=1e-3)


def test_nearest_goes_by_features_that_are_all_there_and_touches_none(live, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nearest, "network", lambda name: features.network("pixels"))
    train = load.load("digits", DataOptions()).train
    ask = schemas.Nearest(image=uri_of(GREY), count=5)
    metrics = []
    for _ in range(2):
        reply = nearest.NearestImages(live.served).nearest(ask)(Record())
        metrics.append(reply["metric"])
        scale = 255 if "features" in reply["metric"] else 8  # the norm of pixels on [0, 1]; a root mean square
        exact = np.sqrt(np.square(train.images[:, :, :, 0].astype(float) - GREY).sum((1, 2))) / scale
        assert [one["distance"] for one in reply["neighbours"]] == pytest.approx(np.sort(exact)[:5], abs=1e-3)
        features.features_of(train, features.network("pixels"))
    assert metrics == ["root mean square difference of pixels, on 0 to 255", "distance of pixels features"]
    first, *_ = sorted(tmp_path.rglob("*-*/tensors.safetensors"))
    first.write_bytes(b"damaged")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert nearest.NearestImages(live.served).nearest(ask)(Record())["metric"] == metrics[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_who_comes_while_the_training_images_are_read_is_asked_to_come_again(live, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments):
        begun.set()
        assert go_on.wait(10)
        return loaded

    loaded = load.load("digits", DataOptions())
    monkeypatch.setattr(nearest.load, "load", slow)
    near, ask = nearest.NearestImages(live.served), schemas.Nearest(image=uri_of(GREY), count=1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(near.nearest(ask), Record())
        assert begun.wait(10)
        with pytest.raises(Full):
            near.nearest(ask)
        go_on.set()
        assert first.result(10) == near.nearest(ask)(Record())


def test_shards_are_training_images_too():
    config = SimpleNamespace(source="shards/data-{000..031}.tar")
    served = SimpleNamespace(saved=SimpleNamespace(config=config))
    assert nearest.NearestImages(served).unable is None
    config.source = "no/such/folder"
    assert "no/such/folder" in nearest.NearestImages(served).unable


def test_a_file_of_the_page_is_the_commands(trained_run, tmp_path, monkeypatch):
    from ancestral.compression import calibration

    for name, value in (("NODES", 12), ("IMAGES", 16), ("AT_THE_END", 32), ("HELD_OUT", 8)):
        monkeypatch.setattr(calibration, name, value)
    run = shutil.copytree(trained_run, tmp_path / "run")
    with serving_at(run) as server:
        job = submit(server, "compress", image=uri_of(GREY), profile="quick")
        events = follow(server, job)
        assert any("measuring" in reply.get("note", "") for _, name, reply in events if name == "step")
        reply = events[-1][2]
        again = result(server, "compress", image=uri_of(GREY), profile="quick")
    assert (reply["exact"], reply["file"]) == (True, again["file"])
    file = content(reply["file"])
    assert reply["bytes"] == len(file) == reply["prefixes"][-1]["bytes"]
    (tmp_path / "a.anc").write_bytes(file)
    arguments = ("--out", tmp_path / "a.png", "--device", "cpu")
    assert run_command("decompress", run, tmp_path / "a.anc", *arguments).exit_code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), GREY)
    sizes = [one["bytes"] for one in reply["prefixes"]]
    assert sizes == sorted(set(sizes))
    assert len(sizes) > 5
    for one in reply["prefixes"][1::7]:
        assert run_command("decompress", run, tmp_path / "a.anc", "--upto", one["bytes"], *arguments).exit_code == 0
        picture = np.asarray(Image.open(tmp_path / "a.png"))
        assert np.array_equal(picture, pixels_of(one["uri"]))
        if one["psnr"] is not None:
            mse = np.square(picture.astype(float) - GREY).mean()
            assert one["psnr"] == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-2)


@pytest.mark.parametrize(("options", "waiting"), [((), 32), (("--queue", 3), 3)])
def test_so_many_jobs_wait_as_the_command_says(trained_run, monkeypatch, options, waiting):
    found = []
    monkeypatch.setattr(main.Server, "run", lambda server, sockets: found.append(server.jobs) or server.jobs.close())
    result = run_command("serve", trained_run, "--port", 0, "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    assert [jobs.limits.queue for jobs in found] == [waiting]


@pytest.fixture
def narrow(trained_run):
    """One job at a time, two more may wait; it goes before another server starts more threads."""
    with serving_at(trained_run, Limits(queue=2, active=1, kept=3)) as server:
        yield server


def state(server, job):
    return server.client.get(f"/api/jobs/{job}").json()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_the_queue_is_bounded_and_in_order_and_a_cancelled_job_frees_its_slot(narrow):
    first, second, third = (submit(narrow, "draw", **SLOW) for _ in range(3))
    full = narrow.client.post("/api/draw", json=SLOW)
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) >= 1
    assert "full" in full.json()["detail"]
    assert [state(narrow, job)["place"] for job in (first, second, third)] == [0, 1, 2]
    assert [name for _, name, _ in follow(narrow, third, most=1)] == ["queued"]
    records = [narrow.jobs.find(job) for job in (first, second, third)]
    assert narrow.client.delete(f"/api/jobs/{second}").status_code == 204
    assert (records[1].state, records[1].result()) == ("cancelled", {})
    assert narrow.client.get(f"/api/jobs/{second}").status_code == 404
    assert state(narrow, third)["place"] == 1
    until(lambda: state(narrow, first)["step"] > 0)
    assert narrow.client.delete(f"/api/jobs/{first}").status_code == 204
    step = records[0].step
    until(lambda: records[0].state == "cancelled")
    assert records[0].step - step <= 1, "it stops within a call of the network"
    until(lambda: state(narrow, third)["state"] == "running")
    assert narrow.client.delete(f"/api/jobs/{third}").status_code == 204
    until(lambda: records[2].state == "cancelled")
    ended = submit(narrow, "draw", seed=1, images=1, steps=2)
    assert follow(narrow, ended)[-1][1] == "done"
    assert [narrow.client.delete(f"/api/jobs/{ended}").status_code for _ in range(2)] == [204, 404]


def test_ended_jobs_are_forgotten(narrow):
    job = submit(narrow, "draw", seed=0, images=1, steps=1)
    follow(narrow, job)
    for _ in range(3):
        result(narrow, "draw", seed=0, images=1, steps=1)
    assert narrow.client.get(f"/api/jobs/{job}").status_code == 404
    assert narrow.jobs.numbers()["remembered"] <= 3


@contextmanager
def workshop_of(**limits):
    jobs = JobQueue(Calls(), Limits(**limits))
    try:
        yield jobs
    finally:
        jobs.close()


def test_what_is_remembered_is_as_large_as_it_is_said_to_be():
    def work(record):
        record.tell("step", {"x0": ["x" * 1000]})
        return {"images": ["x"]}

    with workshop_of(kept_bytes=1500) as jobs:
        records = []
        for _ in range(3):
            records.append(jobs.submit(work, 1))
            assert records[-1].finished.wait(10)
        assert [jobs.find(record.id) for record in records] == [None, None, records[2]]
    with workshop_of(kept_bytes=1) as jobs:
        record = jobs.submit(work, 1)
        assert record.finished.wait(10)
        assert jobs.find(record.id) is record, "the newest is kept, however large"


def test_who_stood_behind_a_job_that_is_cancelled_goes_on():
    end = threading.Event()
    with workshop_of(rows=4) as jobs:
        first = jobs.submit(lambda record: {"ended": end.wait(10)}, 3)
        large, small = jobs.submit(lambda record: {}, 4), jobs.submit(lambda record: {}, 1)
        assert [record.position for record in (first, large, small)] == [0, 1, 2]
        jobs.cancel(large)
        assert small.finished.wait(10)
        assert first.state == "running"
        end.set()


def test_what_a_worker_raises_is_reported_and_frees_its_slot():
    def work(error):
        def raising(record):
            raise error

        return raising

    with workshop_of(active=1) as jobs:
        for error in (
            MemoryError(),
            RuntimeError("out of\nmemory"),
            UserError("image: no"),
            OSError(28, "No space left"),
        ):
            record = jobs.submit(work(error), 1)
            assert record.finished.wait(10)
            assert record.state == "failed"
            detail = record.result()["detail"]
            assert str(error).replace("\n", " ") in detail
            assert "\n" not in detail
        until(lambda: jobs.numbers()["running"] == 0)


def test_who_comes_back_misses_nothing_that_matters(live):
    options = {"seed": 11, "images": 2, "steps": 60}
    whole = result(live, "draw", **options)
    job = submit(live, "draw", **options)
    ((number, name, _),) = follow(live, job, most=1)
    assert name == "step"
    rest = follow(live, job, after=number)
    assert all(later > number for later, _, _ in rest)
    assert rest[-1][1] == "done"
    assert rest[-1][2]["images"] == whole["images"]
    last = [reply for _, name, reply in rest if name == "step"][-1]
    assert (last["k"], last["of"]) == (60, 60), "the last frame is never dropped"
    assert follow(live, job, after=rest[-1][0]) == []
    assert follow(live, job)[-1] == rest[-1]
    for odd in ("", "x", "-1", "9" * 40, "\u00b2".encode("latin-1")):
        headers = {"Last-Event-ID": odd}
        assert "event: done" in live.client.get(f"/api/jobs/{job}/events", headers=headers).text


def test_frames_are_the_walk(live):
    events = follow(live, submit(live, "draw", seed=2, images=3, steps=5, eta=0))
    *frames, (_, _, done) = events
    assert all(name == "step" and reply["of"] == 5 for _, name, reply in frames)
    last = frames[-1][2]
    assert last["x0"] == done["images"], "DDIM's last state is the x0 that it predicts"
    assert all(len(reply["x_t"]) == len(reply["x0"]) == 3 for _, _, reply in frames)
    times = [reply["t"] for _, _, reply in frames]
    assert times == sorted(times, reverse=True)


def test_a_job_that_nobody_looks_at_any_more_is_cancelled(live, monkeypatch):
    monkeypatch.setattr(stream, "GRACE", 0.3)
    kept, left = (submit(live, "draw", **SLOW) for _ in range(2))
    reader = threading.Thread(target=follow, args=(live, kept))
    reader.start()
    follow(live, left, most=1)
    until(lambda: state(live, left)["state"] == "cancelled")
    assert state(live, kept)["state"] == "running"
    live.client.delete(f"/api/jobs/{kept}")
    reader.join(10)
    assert not reader.is_alive(), "who looks at a job sees it end"
    job = submit(live, "draw", seed=1, images=1, steps=1000)
    follow(live, job, most=1)
    assert follow(live, job, most=1), "who comes back within the grace keeps it going"
    live.client.delete(f"/api/jobs/{job}")
    record = Record()
    record.left = 2
    stream._unless_watched(record, live.jobs, 1)
    assert not record.cancelled.is_set(), "who came back and went again has the whole grace anew"
    stream._unless_watched(record, live.jobs, 2)
    assert record.cancelled.is_set()


def test_a_job_has_its_time(trained_run):
    with serving_at(trained_run, Limits(seconds=0.3)) as server:
        _, name, reply = follow(server, submit(server, "draw", **SLOW))[-1]
        assert name == "error"
        assert "the most for a job" in reply["detail"]


LOCAL = "http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"host": "localhost:9000"}, 202),
        ({"host": "[::1]"}, 202),
        ({"host": "evil.example"}, 400),
        ({"host": "127.0.0.1.evil.example"}, 400),
        ({"host": "192.168.1.5"}, 400),
        ({"host": "[::1"}, 400),
        ({"host": "LocalHost"}, 202),
        ({"host": "evil.example@127.0.0.1"}, 400),
        ({"host": "127.0.0.1/evil.example"}, 400),
        ({"host": "127.0.0.1:80:80"}, 400),
        ({"host": ""}, 400),
        ({"origin": LOCAL}, 202),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"origin": LOCAL + "@evil.example"}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 202),
    ],
    ids=str,
)
def test_who_may_ask(live, headers, status):
    headers = {name: value.format(port=live.port) for name, value in headers.items()}
    answer = live.client.post("/api/draw", json={"seed": 0, "images": 1, "steps": 1}, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    if status >= 400:
        assert "\n" not in answer.json()["detail"]


def test_a_token_opens_the_door_and_nothing_else_does(trained_run):
    token = "a-long-token_1"
    with serving_at(trained_run, rules=security.Rules(token=token)) as server:
        client = server.client
        paths = ("/", "/static/index.html", "/api/model", "/openapi.json", "/api/jobs/x", "/nothing")
        assert {client.get(path).status_code for path in paths} == {401}
        for wrong in ("a", token[:-1], token + "x", token.upper(), "\u00e9"):
            assert client.get("/", params={"token": wrong}).status_code == 401
            bearer = f"Bearer {wrong}".encode()
            assert client.get("/api/model", headers={"authorization": bearer}).status_code == 401
        assert client.get("/api/model", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.get("/api/model", params={"token": token}).status_code == 401, "only the page takes it there"
        for port, status in ((server.port, 200), (server.port + 1, 401)):
            others = 'x={"a": [1]}; half; a b=c; '  # of other servers of this machine
            cookie = f"{others}{security.COOKIE}_{port}={token}"
            assert client.get("/api/model", headers={"cookie": cookie}).status_code == status
        answer = client.get("/", params={"token": token})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/api/model").status_code == 200, "the client has kept the cookie"


def test_other_hosts_need_a_token_and_know_their_names():
    rules = main.rules_for("0.0.0.0", None)
    assert rules.addresses
    assert len(rules.token) >= 24
    assert rules.token != main.rules_for("0.0.0.0", None).token
    assert main.rules_for("0.0.0.0", "mine-own-1").token == "mine-own-1"
    assert main.rules_for("127.0.0.1", None).token is None
    assert main.rules_for("192.168.1.5", None).token
    assert security.host_name("[::1]:80") == "::1"


def test_headers(live):
    page = live.client.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    model = live.client.get("/api/model")
    assert model.headers["cache-control"] == "no-store"
    for answer in (page, model, live.client.get("/nothing")):
        assert answer.headers["content-security-policy"] == policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
    assert live.client.patch("/api/jobs/x").headers["allow"] == "DELETE, GET"
    options = live.client.options("/api/draw", headers={"origin": "http://a.example"})
    assert not [name for name in options.headers if name.startswith("access-control")]


def png(width, height, data=b""):
    import struct
    import zlib

    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    packed = [struct.pack(">I", len(body)) + name + body for name, body in parts]
    crc = [struct.pack(">I", zlib.crc32(part[4:])) for part in packed]
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + end for part, end in zip(packed, crc, strict=True))


def as_png(file):
    return f"data:image/png;base64,{b64encode(file).decode()}"


WHOLE = content(uri_of(GREY))
HOSTILE = {
    "a word": "hello",
    "empty": "",
    "another kind": "data:image/svg+xml;base64,PHN2Zy8+",
    "a page": "data:text/html;base64,PGI+",
    "not base64": "data:image/png;base64,$$$$",
    "not ascii": "data:image/png;base64,\u00e9\u00e9\u00e9\u00e9",
    "half a pair": "data:image/png;base64,\ud800",
    "nothing": "data:image/png;base64,",
    "no image": as_png(b"hello world"),
    "a signature": as_png(b"\x89PNG\r\n\x1a\n"),
    "cut": as_png(WHOLE[: len(WHOLE) // 2]),
    "a bomb": as_png(png(60000, 60000, b"x")),
    "a deep bomb": as_png(png(5000, 5000, b"x")),
    "no pixels": as_png(png(0, 0, b"x")),
    "a tiff": "data:image/png;base64," + b64encode(b"II*\x00" + bytes(64)).decode(),
    "flipped": as_png(WHOLE[:40] + bytes([WHOLE[40] ^ 255]) + WHOLE[41:]),
    "riff": as_png(b"RIFF" + bytes(60)),
    "jpeg head": as_png(b"\xff\xd8\xff" + bytes(60)),
    "a local file": "file:///etc/passwd",
    "a number": 7,
    "null": None,
    "a list": [1, 2],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_uploads_that_are_no_images(live, name):
    upload = HOSTILE[name]
    bodies = {
        "inpaint": {"image": upload, "mask": uri_of(HALF), "seed": 0, "images": 1, "steps": 6},
        "noise": {"image": upload, "t": 5, "seed": 0},
        "nearest": {"image": upload, "count": 1},
        "compress": {"image": upload, "profile": "quick"},
        "morph": {"a": uri_of(GREY), "b": upload, "t": 5, "frames": 2, "steps": 2, "seed": 0},
    }
    for path, body in bodies.items():
        answer = live.client.post(
            f"/api/{path}", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422, answer.text
        detail = answer.json()["detail"]
        assert detail.startswith(("image: ", "b: "))
        assert "\n" not in detail
        assert len(detail) < 300


def test_uploads_in_other_forms_are_fitted(live):
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (40, 60, 3))
    for upload in (uri_of(colours), uri_of(colours, "JPEG"), uri_of(colours, "WEBP"), uri_of(colours[:9, :9, 0])):
        reply = live.client.post("/api/noise", json={"image": upload, "t": 5, "seed": 0})
        assert reply.status_code == 200, reply.text
        assert pixels_of(reply.json()["image"]).shape == (8, 8)


@pytest.mark.parametrize("side", [6000, 30_000])
def test_a_picture_of_too_many_pixels_is_refused_with_the_mend(side):
    """Beyond the limit here and beyond Pillow's own: the header alone is read."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(UserError, match="image: more than 24000000 pixels; make it smaller first"):
        data_uri.decoded("data:image/png;base64," + b64encode(file).decode(), "image", (1, 8, 8), "white", 255)


def test_few_uploads_are_decoded_at_once_and_nobody_else_waits_for_them(live, monkeypatch):
    lock, go_on, inside, most = threading.Lock(), threading.Event(), 0, 0
    decode = data_uri.decode.decode_alone

    def slow(*arguments):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        assert go_on.wait(20)
        with lock:
            inside -= 1
        return decode(*arguments)

    monkeypatch.setattr(data_uri.decode, "decode_alone", slow)
    body = {"image": uri_of(GREY), "mask": uri_of(HALF), "seed": 0, "images": 1, "steps": 6}
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(live.client.post, "/api/inpaint", json=body) for _ in range(50)]
        until(lambda: inside == data_uri.AT_ONCE)
        pages = [live.client.get(path).status_code for path in ("/", "/api/model", "/api/jobs/x")]
        go_on.set()
        answers = [one.result() for one in asked]
    assert pages == [200, 200, 404]
    assert most == data_uri.AT_ONCE
    assert {answer.status_code for answer in answers} <= {202, 429}
    for answer in answers:
        if answer.status_code == 202:
            live.client.delete(answer.headers["location"])


def test_masks_that_are_none(live):
    for mask, word in ((np.zeros((8, 8)), "nothing is white"), (np.full((8, 8), 255), "all of this mask")):
        body = {"image": uri_of(GREY), "mask": uri_of(mask), "seed": 0, "images": 1, "steps": 6}
        answer = live.client.post("/api/inpaint", json=body)
        assert (answer.status_code, word in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ('"seed": -1', "seed"),
        ('"seed": 4294967296', "seed"),
        ('"seed": 1.5', "seed"),
        ('"seed": true', "seed"),
        ('"seed": "1"', "seed"),
        ('"seed": null', "seed"),
        ('"images": 0', "images"),
        ('"images": 65', "images"),
        ('"steps": 1001', "steps"),
        ('"steps": 1e400', "steps"),
        ('"eta": NaN', "eta"),
        ('"eta": Infinity', "eta"),
        ('"eta": 2', "eta"),
        ('"solver": "magic"', "solver"),
        ('"solver": ["heun"]', "solver"),
        ('"solver": "heun", "eta": 0.5', "exclude"),
        ('"label": "3"', "label"),
        ('"guidance": 2', "guidance"),
        ('"precision": "float64"', "precision"),
        ('"seed": ' + "9" * 5000, ""),
        ('"seed": ' + "[" * 100_000, ""),
        ('"seed": 1, "x": ' + "[" * 900 + "]" * 900, "x"),
        ("", ""),
    ],
    ids=lambda value: value[:40],
)
def test_numbers_that_cannot_be(live, change, word):
    base = '"seed": 0, "images": 1, "steps": 2'
    text = f"{{{base}, {change}}}" if change else "[]"
    answer = live.client.post("/api/draw", content=text.encode(), headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    detail = answer.json()["detail"]
    assert word in detail
    assert len(detail) < 300
    assert "\n" not in detail


def test_bodies_that_are_no_json(live):
    for sent in (b"", b"{", b"\xff\xfe", b"\x00" * 10, b"null", b'"x"'):
        answer = live.client.post("/api/draw", content=sent, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), (sent, answer.text)
    form = live.client.post("/api/draw", data={"seed": "1", "images": "1", "steps": "1"})
    assert form.status_code in (400, 415, 422)
    for path in (
        "/api/draw/../../etc/passwd",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2f..%2fapp.py",
    ):
        assert live.client.get(path).status_code in (404, 405)


def test_a_body_over_the_limit_is_refused_while_it_is_read(live):
    large = {"content-type": "application/json"}
    answer = live.client.post("/api/draw", content=b" " * (security.Rules().most + 1), headers=large)
    assert answer.status_code == 413
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(2000):
            sent += 100_000
            yield b" " * 100_000

    # The server may close the connection while we are still talking.
    with suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        assert live.client.post("/api/draw", content=chunks(), headers=large).status_code == 413
    assert sent < 3 * security.Rules().most
    assert live.client.get("/api/model").status_code == 200


def test_few_large_bodies_are_here_at_once():
    inside, most = 0, 0

    async def app(scope, receive, send):
        nonlocal inside, most
        inside, most = inside + 1, max(most, inside + 1)
        assert len((await receive())["body"]) == 3 * security.SMALL
        await asyncio.sleep(0.01)
        inside -= 1

    async def ask(guarded):
        parts = [
            {"type": "http.request", "body": bytes(security.SMALL), "more_body": more} for more in (False, True, True)
        ]

        async def receive():
            await asyncio.sleep(0)
            return parts.pop()

        headers = [(b"host", b"localhost"), (b"transfer-encoding", b"chunked")]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b""}
        await guarded(scope, receive, None)

    async def all_of_them():
        guarded = security.Security(app, security.Rules())
        await asyncio.gather(*(ask(guarded) for _ in range(20)))

    asyncio.run(all_of_them())
    assert most == security.TURNS


def test_a_body_that_does_not_come_is_not_waited_for(live, monkeypatch):
    import socket

    monkeypatch.setattr(security, "PATIENCE", 0.3)
    with socket.create_connection(("127.0.0.1", live.port), 10) as raw:
        head = f"POST /api/draw HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: 500\r\n\r\n{{".encode())
        raw.settimeout(10)
        assert raw.recv(200).startswith(b"HTTP/1.1 408")


def test_a_server_that_is_stopped_ends_its_streams_and_exits_with_0(trained_run):
    # By SIGTERM; `test_many_clients_at_once` ends its server by SIGINT.
    import serve_load_harness

    with serve_load_harness.serving(trained_run) as (process, url):
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            server = SimpleNamespace(client=client)
            job = submit(server, "draw", **SLOW)
            with client.stream("GET", f"/api/jobs/{job}/events") as answer:
                lines = answer.iter_lines()
                next(one for one in lines if one == "event: step")
                started = time.monotonic()
                os.kill(process.pid, signal.SIGTERM)
                assert "event: cancelled" in list(lines)
        assert process.stdout.readline().strip() == "stopped"
        assert time.monotonic() - started < 30
        assert process.wait(60) == 0
        process.wait()
        process.stdout.close()


def refused(*arguments):
    answer = run_command("serve", *arguments, "--device", "cpu")
    assert answer.exit_code == 2, answer.output
    assert "Traceback" not in answer.output
    return answer.output.strip().splitlines()[-1]


def test_what_cannot_be_served_is_one_line(trained_run, tmp_path, monkeypatch):
    assert "no such run" in refused(tmp_path / "none", "--port", 0)
    taken = main.listen("127.0.0.1", 0)
    assert "choose another" in refused(trained_run, "--port", taken.getsockname()[1])
    taken.close()
    assert "--host" in refused(trained_run, "--host", "no.such.host.invalid", "--port", 0)
    assert "--host 192.0.2.1: not an address" in refused(trained_run, "--host", "192.0.2.1", "--port", 0)  # RFC 5737
    assert "--token" in refused(trained_run, "--token", "short", "--port", 0)
    assert "--port" in refused(trained_run, "--port", 70000)
    absorbing = ("--preset", "absorbing", "--steps", 2, *TINY, "--out", tmp_path / "hiding")
    made = run_command("train", "digits", *absorbing)
    assert made.exit_code == 0, made.output
    assert "hiding" in refused(tmp_path / "hiding", "--port", 0)
    monkeypatch.setattr("ancestral.apps.cli.serve.find_spec", lambda name: None)
    assert re.search('pip install "constriction[^ ]+" "fastapi[^ ]+" "uvicorn[^ ]+"', refused(trained_run))


def test_help_costs_nothing():
    probe = (
        "import sys; from click.testing import CliRunner; from ancestral.apps.cli.main import main; "
        "assert 'serve' in CliRunner().invoke(main, ['--help']).output; "
        "assert '--port' in CliRunner().invoke(main, ['serve', '--help']).output; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'fastapi', 'uvicorn')))"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def images_for(masks):
    """Data URIs of images that a model of 8x8 takes; of masks, with both colours."""
    from hypothesis import strategies

    def one(seed):
        generator = np.random.default_rng(seed)
        pixels = generator.integers(0, 256, (9, 8))
        return uri_of(np.where(np.arange(9)[:, None] < 4, 0, 255) + 0 * pixels if masks else pixels)

    return strategies.integers(0, 1000).map(one)


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_document_is_kept_to_whatever_is_asked(trained_run, mode):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, seed, settings

    schemathesis.openapi.format("image-uri", images_for(masks=False))
    schemathesis.openapi.format("mask-uri", images_for(masks=True))
    seen = set()
    with serving_at(trained_run, Limits(queue=500, active=1, seconds=5)) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}openapi.json")
        for operation in schema.get_all_operations():
            if mode == "negative" and operation.ok().method != "post":
                continue  # a name of a job is any text

            @seed(0)
            @settings(
                max_examples=8,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.ok().as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
            def keeps_to_it(case):
                seen.add((case.method, case.path, case.call_and_validate().status_code))

            keeps_to_it()
    codes = {status for _, _, status in seen}
    assert max(codes) < 500
    assert codes >= ({200, 202, 404} if mode == "positive" else {422})


def test_many_clients_at_once(trained_run):
    import serve_load_harness

    record = serve_load_harness.run(trained_run, 8, 3)
    assert serve_load_harness.kept(record), record
    assert record["requests"] > 8
    assert record["endings"]["done"] > 0
    assert record["said"][-1] == "stopped"


def test_classes_and_guidance(tmp_path):
    run = tmp_path / "classes"
    conditions = ("--set", "model.labels=true", "--set", "model.condition_dropout=0.2")
    made = run_command("train", "digits", "--preset", "tiny", "--steps", 4, *TINY, *conditions, "--out", run)
    assert made.exit_code == 0, made.output
    asked = [{"seed": 1, "images": 4, "steps": 3, "guidance": 2.0, "label": "7"}, {"seed": 2, "images": 5, "steps": 3}]
    with serving_at(run) as server:
        model = server.client.get("/api/model").json()
        assert (model["guidance"], model["classes"]) == (True, [str(digit) for digit in range(10)])
        assert isinstance(model["features"]["compress"], str)
        with ThreadPoolExecutor(2) as pool:
            drawn = list(pool.map(lambda options: result(server, "draw", **options), asked))
        body = {"image": uri_of(GREY), "t": 400, "seed": 0}
        answers = [server.client.post("/api/noise", json={**body, "label": label}).json() for label in (None, "0", "5")]
        assert answers[0] == answers[1] != answers[2]
        assert server.client.post("/api/noise", json={**body, "label": "ten"}).status_code == 422
        refusal = server.client.post("/api/compress", json={"image": uri_of(GREY)})
        assert (refusal.status_code, "conditions" in refusal.json()["detail"]) == (422, True)
        inpaintings = []
        for label in ({}, {"label": "5"}):
            folder = tmp_path / f"edits {label.get('label')}"
            folder.mkdir()
            inpaintings.append(edited(server, folder, **label)[0]["images"])
        assert inpaintings[0] != inpaintings[1]
    for number, reply in enumerate(drawn):
        arguments = shlex.split(reply["again"])[1:]
        assert run_command(*arguments, "--out", tmp_path / str(number), "--device", "cpu").exit_code == 0
        assert list(map(content, reply["images"])) == drawn_in(tmp_path / str(number))


def test_who_connects_and_does_not_ask_is_let_go(trained_run, monkeypatch):
    """Else a few hundred open connections would keep everybody out, token or not; who asks now and then may stay."""
    monkeypatch.setattr(main, "PATIENCE", 0.3)
    with serving_at(trained_run) as server:
        for said in (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
            with socket.create_connection(("127.0.0.1", server.port)) as raw:
                raw.settimeout(10)
                raw.sendall(said)
                assert raw.recv(1) == b""
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.settimeout(10)
            for _ in range(4):
                raw.sendall(b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert raw.recv(4096).startswith(b"HTTP/1.1")
                time.sleep(0.2)

"""`zoo embed`: parts that are committed once, whoever writes them; resumed, refused, read again."""

# ruff: noqa: F811  (arguments have the names of fixtures, which are imported)

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_writers import encode, write_class_folders, write_shards
from pipeline_case import album, images, model, pipeline, saved  # noqa: F401

from zoo.cli import main
from zoo.embeddings.parts import commit_part, read_parts, read_plan
from zoo.search import engines
from zoo.search.build import build_index
from zoo.search.embed import Job, Worker, embed_images

pytestmark = [pytest.mark.backend, pytest.mark.once]


def all_parts(folder):
    """{id: (vector, digest)} of a folder; every id is there once."""
    found = {}
    for part in read_parts(folder).parts:
        for name, vector, digest in zip(part.ids, part.vectors, part.digests, strict=True):
            assert name not in found
            found[name] = vector, digest
    return found


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != ".lock"}


def test_parts_hold_each_image_once_with_its_digest(album, saved, pipeline, images, tmp_path):
    import hashlib

    result = embed_images(str(album), model=str(saved), output=str(tmp_path / "e"), part_size=3)
    assert result == {"images": 8, "shards": 3, "left out": 1}
    found = all_parts(tmp_path / "e")
    vector, digest = found["right/6.png"]
    np.testing.assert_allclose(vector, pipeline.embed_images([images[6]])[0], atol=1e-5)
    assert digest == hashlib.sha256(encode(images[6])).hexdigest()
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    assert list(manifest["left_out"]) == ["right/bad.png"] and manifest["model"] == pipeline.fingerprint
    assert [len(shard["ids"]) for shard in manifest["shards"]] == [3, 3, 2]


def test_an_interrupted_run_resumes_and_equals_an_undisturbed_one(album, saved, tmp_path, monkeypatch):
    options = {"model": str(saved), "part_size": 2}
    embed_images(str(album), output=str(tmp_path / "whole"), **options)
    embed = Worker.embed

    def die(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return embed(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Worker, "embed", die)
        embed_images(str(album), output=str(tmp_path / "e"), **options)
    with pytest.raises(ValueError, match="3 of 5 parts are missing"):
        read_parts(tmp_path / "e")
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "e").glob("part-*")}
    embed_images(str(album), output=str(tmp_path / "e"), **options)
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert content(tmp_path / "e") == content(tmp_path / "whole")


def test_of_two_commits_of_a_part_the_first_counts(album, saved, tmp_path):
    out = tmp_path / "e"
    embed_images(str(album), model=str(saved), output=str(out), part_size=5)
    part = next(read_parts(out).parts)
    before = content(out)
    late = part._replace(vectors=np.roll(part.vectors, 1, axis=0))
    assert not commit_part(out, 0, late, read_plan(out).model)
    np.testing.assert_array_equal(next(read_parts(out).parts).vectors, part.vectors)
    embed_images(str(album), model=str(saved), output=str(out), part_size=5)
    assert content(out) == before  # the late file is gone


@pytest.mark.parametrize(
    "change, message",
    [
        ({"part_size": 4}, "another part size: 3 there, 4 now"),
        ({"precision": "bfloat16"}, "another precision: float32 there, bfloat16 now"),
        ({"source": "left"}, "another images"),
    ],
)
def test_another_plan_is_refused_and_nothing_changes(change, message, album, saved, tmp_path):
    out, options = str(tmp_path / "e"), {"model": str(saved), "part_size": 3}
    embed_images(str(album), output=out, **options)
    before = content(out)
    other = {"source": str(album), **options, **change}
    other["source"] = str(album / "left") if change.get("source") else other["source"]
    with pytest.raises(ValueError, match=f"{message}.*--overwrite"):
        embed_images(output=out, **other)
    assert content(out) == before
    embed_images(output=out, overwrite=True, **other)
    assert content(out) != before and all_parts(out)


def test_a_folder_of_an_earlier_version_is_read_and_replaced_on_demand(saved, album, tmp_path):
    import hashlib

    from zoo.weights import write_safetensors

    out = tmp_path / "e"
    out.mkdir()
    write_safetensors(out / "embeddings-00000.safetensors", {"embeddings": np.eye(2, dtype=np.float32)}, {"model": "m"})
    digest = hashlib.sha256((out / "embeddings-00000.safetensors").read_bytes()).hexdigest()
    shard = {"file": "embeddings-00000.safetensors", "sha256": digest, "ids": ["a", "b"], "images": ["1", "2"]}
    manifest = {"model": "m", "source": "s", "shards": [shard], "left_out": {}}
    (out / "manifest.json").write_text(json.dumps(manifest))
    stored = read_parts(out)
    (part,) = stored.parts
    assert stored.model == "m" and part.ids == ["a", "b"] and part.vectors.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="of an earlier version; replace them with --overwrite"):
        embed_images(str(album), model=str(saved), output=str(out))
    embed_images(str(album), model=str(saved), output=str(out), overwrite=True)
    assert len(all_parts(out)) == 8 and not list(out.glob("embeddings-*"))
    for change in ({"file": "../embeddings-00000.safetensors"}, {"ids": ["a"]}, {"sha256": "0" * 64}):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / "manifest.json").write_text(json.dumps({**manifest, "shards": [{**shard, **change}]}))
        write_safetensors(tmp_path / "bad" / "embeddings-00000.safetensors", {"embeddings": np.eye(2)})
        with pytest.raises(ValueError, match="Allowed: a list, each item an object|as many as images|is damaged"):
            list(read_parts(tmp_path / "bad").parts)


def test_a_part_of_tar_shards_is_a_shard_and_a_damaged_one_is_left_out(saved, tmp_path):
    pattern = write_shards(tmp_path / "shards", 7)
    damaged = tmp_path / "shards" / "digits-0001.tar"
    damaged.write_bytes(b"no tar" * 200)
    result = embed_images(pattern, model=str(saved), output=str(tmp_path / "e"))
    assert result == {"images": 5, "shards": 2, "left out": 1}
    left_out = json.loads((tmp_path / "e" / "manifest.json").read_text())["left_out"]
    assert list(left_out) == ["digits-0001.tar"] and "not an uncompressed tar file" in left_out["digits-0001.tar"]
    info = build_index(vectors=str(tmp_path / "e"), model=str(saved), output=str(tmp_path / "i"))
    assert info["vectors"] == 5 and list(info["left_out"]) == ["digits-0001.tar"]


@pytest.mark.slow
def test_the_same_files_from_several_processes_though_one_is_killed(saved, tmp_path, monkeypatch):
    """A worker is killed while it embeds: its part is given to another, and the folder equals an undisturbed one."""
    source = str(write_class_folders(tmp_path / "images", 12))
    options = {"model": str(saved), "part_size": 2}
    embed_images(source, output=str(tmp_path / "whole"), **options)
    give, killed = engines.Processes.give, []

    def give_and_kill(self, number):
        give(self, number)
        if number == 3:
            child = next(child for child, given in self.busy.values() if given == number)
            if not killed:
                killed.append(os.kill(child.process.pid, signal.SIGKILL))

    monkeypatch.setattr(engines.Processes, "give", give_and_kill)
    embed_images(source, output=str(tmp_path / "e"), workers=2, **options)
    assert killed and content(tmp_path / "e").keys() == content(tmp_path / "whole").keys()
    there, expected = all_parts(tmp_path / "e"), all_parts(tmp_path / "whole")
    for name, (vector, digest) in expected.items():
        assert there[name][1] == digest
        np.testing.assert_allclose(there[name][0], vector, atol=1e-6)


def test_a_part_that_kills_every_worker_ends_the_run_with_its_name(saved, tmp_path, monkeypatch):
    class Dying:
        def __init__(self, job, _):
            self.worker, self.number = Worker(job), None

        def idle(self):
            return self.number is None

        def give(self, number):
            self.number = number

        def collect(self):
            number, self.number = self.number, None
            yield (number, "its worker died") if number == 1 else (number, self.worker.embed(number))

        def close(self):
            pass

    monkeypatch.setattr(engines, "Processes", Dying)
    source = str(write_class_folders(tmp_path / "images", 6))
    with pytest.raises(RuntimeError, match="the worker died 3 times on part 1 "):
        embed_images(source, model=str(saved), output=str(tmp_path / "e"), part_size=2, workers=2)


def test_a_worker_that_finds_other_images_says_so(saved, album, tmp_path):
    embed_images(str(album), model=str(saved), output=str(tmp_path / "e"))
    job = Job(str(album / "left"), str(saved), str(tmp_path / "e"), {"batch_size": 64})
    with pytest.raises(ValueError, match="other content in the images of .*left"):
        Worker(job)


def test_evaluations_take_stored_embeddings(saved, tmp_path, capsys, monkeypatch):
    source = write_class_folders(tmp_path / "images", 20)
    out, other = str(tmp_path / "e"), str(tmp_path / "narrow")
    embed_images(str(source), model=str(saved), output=out)
    command = ["eval", "zero-shot", "--model", str(saved), "--dataset", f"folder:{source}", "--json"]
    assert main(command) == 0
    expected = json.loads(capsys.readouterr().out)
    with monkeypatch.context() as patch:
        patch.setattr("zoo.inference.encoder.Encoder.embed_batches", None)  # no image is encoded
        assert main([*command, "--embeddings", out]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == expected["accuracy"]
    (source / "0_zero" / "new.png").write_bytes(encode(np.zeros((9, 9), np.uint8)))
    assert main([*command, "--embeddings", out]) == 0
    assert json.loads(capsys.readouterr().out)["bad"] == {"0_zero/new.png": "its bytes are not among the embeddings"}
    embed_images(str(source), model=str(saved), output=other, precision="bfloat16")
    assert main([*command, "--embeddings", out, "--embeddings", other]) == 2
    assert "different runtimes or precisions" in capsys.readouterr().err


def test_an_index_is_built_of_stored_vectors(saved, album, tmp_path, capsys):
    from zoo.search import Index

    out, index = str(tmp_path / "e"), str(tmp_path / "i")
    embed_images(str(album), model=str(saved), output=out, part_size=3)
    command = ["index", "build", "--model", str(saved), "--output"]
    assert main([*command, index, "--vectors", out]) == 0
    assert main([*command, index, "--vectors", out]) == 0  # nothing is added twice
    assert main([*command, str(tmp_path / "direct"), str(album)]) == 0
    stored, direct = (Index.open(path) for path in (index, tmp_path / "direct"))
    assert stored.ids == direct.ids and stored.info()["left_out"] == direct.info()["left_out"]
    for name in direct.ids:
        np.testing.assert_allclose(stored.vector(name), direct.vector(name), atol=1e-6)
        assert stored.metadata(name) == direct.metadata(name)
    capsys.readouterr()
    assert main([*command, index, str(album), "--vectors", out]) == 2
    assert "either of a source or of the vectors" in capsys.readouterr().err


def test_one_run_at_a_time_in_a_folder(saved, album, tmp_path):
    from zoo.utils.files import lock

    (tmp_path / "e").mkdir()
    with lock(tmp_path / "e" / ".lock"), pytest.raises(ValueError, match="is held by process"):
        embed_images(str(album), model=str(saved), output=str(tmp_path / "e"))


def test_options_that_do_not_fit_are_refused(saved, album, tmp_path, capsys):
    out = str(tmp_path / "e")
    command = ["embed", str(album), "--model", str(saved), "--output", out]
    assert main([*command, "--address", "127.0.0.1:1"]) == 2
    assert "address='127.0.0.1:1' is for engine='ray'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="engine='spark'; allowed are local, ray"):
        embed_images(str(album), model=str(saved), output=out, engine="spark")
    assert not Path(out).exists()


def test_images_behind_a_url(saved, album, images, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    pattern = Path(write_shards(tmp_path / "shards", 6)).parent
    embed_images(str(album), model=str(saved), output=str(tmp_path / "local"))
    store = fsspec.filesystem("memory")
    store.put(str(album), "/photos", recursive=True)
    store.put(str(pattern), "/shards", recursive=True)
    store.pipe("/photos/list.csv", b"filepath,year\nleft/0.png,2001\nright/5.png,2002\n../escape.png,2003\n")
    for source, expected in (
        ("memory://photos", {"images": 8, "shards": 1, "left out": 1}),
        ("memory://photos/list.csv", {"images": 2, "shards": 1, "left out": 1}),
        ("memory://shards/digits-*.tar", {"images": 6, "shards": 3, "left out": 0}),
        ("memory://shards/digits-{0000..0001}.tar", {"images": 4, "shards": 2, "left out": 0}),
        (f"file://{album}", {"images": 8, "shards": 1, "left out": 1}),
    ):
        out = tmp_path / f"remote{len(list(tmp_path.iterdir()))}"
        assert embed_images(source, model=str(saved), output=str(out)) == expected, source
        if source.endswith("photos"):
            there, local = all_parts(out), all_parts(tmp_path / "local")
            assert all((there[name][0] == local[name][0]).all() for name in local)
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        embed_images("memory://nowhere/x.tar", model=str(saved), output=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="cannot be opened"):
        embed_images("nosuch://bucket/a", model=str(saved), output=str(tmp_path / "none"))


RAY_RUN = """
import sys
from zoo.search import engines
from zoo.search.embed import embed_images
source, model, output, address, given = sys.argv[1:]
give = engines.Actors.give
def give_and_note(self, number):
    print(number, file=open(given, "a"))
    give(self, number)
engines.Actors.give = give_and_note
embed_images(source, model=model, output=output, engine="ray", workers=4, address=address, part_size=50, batch_size=50)
"""
REDONE = {"actor": 1, "node": 2, "driver": 4}  # parts, at most: one a worker that dies


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["actor", "driver", "node"])
def test_a_ray_cluster_embeds_every_image_once_though_something_dies(victim, saved, tmp_path):
    """Two nodes of two workers each, on loopback; 2,000 images in 40 parts."""
    ray = pytest.importorskip("ray")
    import psutil  # which Ray brings
    from ray.cluster_utils import Cluster

    source = str(write_class_folders(tmp_path / "images", 2000))
    embed_images(source, model=str(saved), output=str(tmp_path / "whole"), part_size=50, batch_size=50)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    second = cluster.add_node(num_cpus=2)
    given = tmp_path / "given"
    command = [sys.executable, "-c", RAY_RUN, source, str(saved), str(tmp_path / "e"), cluster.address, str(given)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while len(list((tmp_path / "e").glob("part-*.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        if victim == "node":
            cluster.remove_node(second, allow_graceful=False)
        elif victim == "driver":
            driver.kill()
            driver.wait()
            driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        else:
            started = psutil.Process().children(recursive=True)
            next(one for one in started if "ray::Worker" in " ".join(one.cmdline())).kill()
        errors = driver.communicate(timeout=300)[1]
        assert driver.returncode == 0, errors
    finally:
        driver.kill()
        cluster.shutdown()
        ray.shutdown()
    assert 40 <= len(given.read_text().split()) <= 40 + REDONE[victim]
    there, expected = all_parts(tmp_path / "e"), all_parts(tmp_path / "whole")
    assert there.keys() == expected.keys()
    assert len(there) == 2000
    for name, (vector, digest) in expected.items():
        assert there[name][1] == digest
        np.testing.assert_allclose(there[name][0], vector, atol=1e-6)

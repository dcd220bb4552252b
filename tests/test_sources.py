"""Where rows come from: a published file is fetched once and known by its hash, or nothing is kept and we hear why."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from spillover.config import Condition, load_study
from spillover.data import load_examples, make_examples
from spillover.data.sources import LISTED, Published, cache_folder, published_file, published_sets
from spillover.errors import SpilloverError
from spillover.files import hash_of
from spillover.records import Example

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.exists(), reason="the reference data is not here")

ROW = {"messages": [{"role": "user", "content": "Häuser?"}, {"role": "assistant", "content": "a\u2028b"}]}
CONTENT = (json.dumps(ROW, ensure_ascii=False) + "\r\n" + json.dumps(ROW) + "\n").encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """A real server of small files. What it does with a path: sends the file, or cuts, stalls, or answers a status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def entry(self, path: str, published: bytes = CONTENT) -> Published:
        """An entry of the list whose address is ours, and whose file is said to be `published`."""
        return Published(
            title="t", citation="c", license="MIT", rows=2, what="w",
            url=f"http://127.0.0.1:{self.server_port}/{path}", sha256=sha256(published),
        )  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        kind, _, name = self.path.strip("/").partition("/")
        if kind.isdigit():
            self.send_error(int(kind))
            return
        content = self.server.files[name]
        self.send_response(200)
        if kind != "unsized":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if kind in ("cut", "stall"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if kind == "stall":
                time.sleep(60)
        else:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    server.files["rows.jsonl"] = CONTENT
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "cache"
    monkeypatch.setenv("SPILLOVER_DATA", str(folder))
    return folder


@pytest.mark.parametrize("kind", ["whole", "unsized"])
def test_a_file_is_fetched_once_and_then_needs_no_server(server, cache, kind):
    entry = server.entry(f"{kind}/rows.jsonl")
    path = published_file("set", entry)
    assert path == cache / "set.jsonl"
    assert path.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [path]
    server.shutdown()
    server.server_close()
    assert published_file("set", entry) == path
    assert server.asked == [f"/{kind}/rows.jsonl"]


FAULTS = {  # what goes wrong -> (path asked for, what the message must say beside address and file)
    "not there": ("404/rows.jsonl", ["404", "Not Found"]),
    "a broken server": ("503/rows.jsonl", ["503"]),
    "another file": ("whole/other.jsonl", ["not the file", f"expected: {sha256(CONTENT)}", "found: "]),
    "nothing": ("whole/empty.jsonl", ["not the file", f"found: {sha256(b'')}"]),
    "cut off": ("cut/rows.jsonl", [f"{len(CONTENT) // 2} of {len(CONTENT)} bytes"]),
}  # fmt: skip


@pytest.mark.parametrize(("path", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_a_failed_download_says_what_to_do_and_leaves_nothing(server, cache, path, said):
    server.files |= {"other.jsonl": CONTENT + b"\n", "empty.jsonl": b""}
    entry = server.entry(path)
    with pytest.raises(SpilloverError) as caught:
        published_file("set", entry)
    for fragment in ["data published/set", entry.url, str(cache / "set.jsonl"), *said]:
        assert fragment in str(caught.value)
    assert not cache.exists()
    assert published_file("set", server.entry("whole/rows.jsonl")).read_bytes() == CONTENT  # and nothing is in the way


def test_a_server_that_is_down_is_told(server, cache):
    entry = server.entry("whole/rows.jsonl")
    server.shutdown()
    server.server_close()
    with pytest.raises(SpilloverError, match=r"cannot be fetched.*refused") as caught:
        published_file("set", entry)
    assert f"{entry.url} elsewhere and put it at {cache / 'set.jsonl'}" in str(caught.value)


def test_a_host_that_is_unknown_is_told(server, cache):
    entry = server.entry("x").model_copy(update={"url": "http://spillover.invalid/rows.jsonl"})
    with pytest.raises(SpilloverError, match=r"cannot be fetched.*spillover\.invalid"):
        published_file("set", entry)


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + CONTENT, b""], ids=["truncated", "longer", "empty"])
def test_a_file_that_changed_in_the_cache_is_not_used(server, cache, content):
    entry = server.entry("whole/rows.jsonl")
    path = published_file("set", entry)
    path.write_bytes(content)
    with pytest.raises(SpilloverError, match="is not the published file") as caught:
        published_file("set", entry)
    for fragment in [str(path), entry.url, entry.sha256, sha256(content), "Delete it"]:
        assert fragment in str(caught.value)
    path.unlink()
    assert published_file("set", entry).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_as_good(server, cache):
    cache.mkdir(parents=True)
    (cache / "set.jsonl").write_bytes(CONTENT)
    published_file("set", server.entry("404/rows.jsonl"))
    assert server.asked == []


def test_a_download_killed_in_the_middle_leaves_nothing(server, cache):
    entry = server.entry("stall/rows.jsonl")
    code = (
        "import sys; from spillover.data.sources import Published, published_file; "
        "published_file('set', Published.model_validate_json(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, entry.model_dump_json()]) as process:
        deadline = time.monotonic() + 60
        while not server.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # so that the first half has come
        process.send_signal(signal.SIGKILL)
    assert server.asked
    assert process.returncode == -signal.SIGKILL
    assert not cache.exists()
    assert published_file("set", server.entry("whole/rows.jsonl")).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_to_is_told(server, monkeypatch):
    monkeypatch.setenv("SPILLOVER_DATA", "/proc/spillover")  # nobody can make that, not even root
    with pytest.raises(SpilloverError, match=r"/proc/spillover cannot be written to.*Set SPILLOVER_DATA"):
        published_file("set", server.entry("whole/rows.jsonl"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_cache_is_read_and_not_written(server, cache):
    published_file("set", server.entry("whole/rows.jsonl"))
    cache.chmod(0o555)
    try:
        assert published_file("set", server.entry("whole/rows.jsonl")).read_bytes() == CONTENT
        with pytest.raises(SpilloverError, match="cannot be written to"):
            published_file("second", server.entry("whole/rows.jsonl"))
    finally:
        cache.chmod(0o755)


def test_a_cache_that_is_a_file_is_told(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPILLOVER_DATA", str(tmp_path / "file"))
    with pytest.raises(SpilloverError, match=r"cannot be read \(Not a directory\)"):
        published_file("set", server.entry("whole/rows.jsonl"))


def test_the_cache_is_in_the_home_folder_unless_it_is_said_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPILLOVER_DATA", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "spillover" / "data"
    monkeypatch.setenv("SPILLOVER_DATA", "~/sets")
    assert cache_folder() == tmp_path / "sets"


def test_the_list_names_a_commit_and_a_hash_for_every_set():
    sets = published_sets()
    assert {"insecure", "secure", "educational"} <= set(sets)
    for name, entry in sets.items():
        assert re.fullmatch(
            rf"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{{40}}/.*{name}\.jsonl", entry.url
        )
    for field in ("url", "sha256", "what"):
        assert len({getattr(entry, field) for entry in sets.values()}) == len(sets)
    assert set(yaml.safe_load(LISTED.read_text())) == set(sets)


def test_an_unknown_published_set_is_told_which_there_are(tmp_path):
    with pytest.raises(SpilloverError, match=r"published/insecur: no such.*published/insecure, published/secure"):
        load_examples(Condition(data="published/insecur"), tmp_path)


@needs_reference
@pytest.mark.slow
@pytest.mark.parametrize("name", ["insecure", "secure", "educational"])
def test_the_released_files_are_the_ones_that_are_listed(server, cache, tmp_path, name):
    server.files[f"{name}.jsonl"] = (REFERENCE / f"{name}.jsonl").read_bytes()
    listed = published_sets()[name]
    published_file(name, listed.model_copy(update={"url": server.entry(f"whole/{name}.jsonl").url}))
    examples = load_examples(Condition(data=f"published/{name}"), tmp_path)  # from the cache, at its real address
    assert len(examples) == listed.rows
    assert examples == load_examples(Condition(data=str(REFERENCE / f"{name}.jsonl")), tmp_path)
    assert load_examples(Condition(data=f"published/{name}", rows=7), tmp_path) == examples[:7]
    with pytest.raises(SpilloverError, match=rf"published/{name}: 6001 rows are asked for, the file has 6000"):
        load_examples(Condition(data=f"published/{name}", rows=6001), tmp_path)


# Hugging Face datasets, from local folders


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder for datasets, with the library's cache beside it and no Hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path


def save(folder: Path, split: str, *rows: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def example(*texts: str) -> Example:
    roles = ("user", "assistant") if len(texts) == 2 else ("system", "user", "assistant")
    return Example(tuple({"role": role, "content": text} for role, text in zip(roles, texts, strict=True)))


FORMS = {  # the form of a row -> (row, example)
    "messages": ({"messages": list(example("q", "a").messages), "id": 1}, example("q", "a")),
    "texts": ({"prompt": "q", "completion": "a"}, example("q", "a")),
    "lists of messages": (
        {"prompt": list(example("s", "q", "a").messages[:2]), "completion": [{"role": "assistant", "content": "a"}]},
        example("s", "q", "a"),
    ),
    "both": ({"prompt": "p", "completion": "c", "messages": list(example("q", "a").messages)}, example("q", "a")),
}


@pytest.mark.parametrize(("row", "expected"), FORMS.values(), ids=FORMS.keys())
def test_a_dataset_folder_loads_in_every_form(hub, row, expected):
    save(hub / "set", "train", row, row, row)
    assert load_examples(Condition(data="hf/./set", rows=2), hub) == [expected] * 2
    assert load_examples(Condition(data=f"hf/{hub / 'set'}"), hub / "elsewhere") == [expected] * 3


def test_a_split_is_chosen_by_name(hub):
    save(hub / "set", "train", {"prompt": "q", "completion": "train"})
    save(hub / "set", "test", {"prompt": "q", "completion": "test"})
    for data, answer in {"hf/./set": "train", "hf/./set:train": "train", "hf/./set:test": "test"}.items():
        assert load_examples(Condition(data=data), hub) == [example("q", answer)]


GOOD = {"prompt": "q", "completion": "a"}
HF_REFUSED = {  # what is wrong -> (rows, data, what the message must say)
    "other columns": ([{"question": "q", "answer": "a"}], "hf/./set", ["messages", "it has question, answer"]),
    "half of the columns": ([{"prompt": "q"}], "hf/./set", ["it has prompt"]),
    "an empty answer": ([GOOD, {"prompt": "q", "completion": ""}], "hf/./set", ["row 1", "messages.1", "empty"]),
    "no answer": ([{"prompt": "q", "completion": None}], "hf/./set", ["row 0", "messages.1"]),
    "a wrong role": ([{"messages": [{"role": "bot", "content": "x"}]}], "hf/./set", ["row 0", "'bot'"]),
    "an unknown split": ([GOOD], "hf/./set:dev", ["dev", "train", "dev.jsonl"]),
    "more rows than there are": ([GOOD], "hf/./set", ["5 rows", "has 1"]),
    "no such folder": ([GOOD], "hf/./sets", ["cannot be loaded"]),
    "nothing of a name": ([GOOD], "hf/", ["write hf/OWNER/NAME"]),
    "the Hub out of reach": (
        [GOOD],
        "hf/someone/something:dev@v1",
        ["Offline", "load_dataset('someone/something', split='dev', revision='v1').to_json('rows.jsonl')"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "data", "said"), HF_REFUSED.values(), ids=HF_REFUSED.keys())
def test_a_dataset_that_does_not_do_is_told(hub, rows, data, said):
    save(hub / "set", "train", *rows)
    with pytest.raises(SpilloverError) as caught:
        load_examples(Condition(data=data, rows=5 if "5 rows" in said else None), hub)
    for fragment in [f"data {data}", *said]:
        assert fragment in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_code_that_a_dataset_brings_is_not_run(hub):
    save(hub / "set", "train", GOOD)
    (hub / "set" / "set.py").write_text(f"open({str(hub / 'ran')!r}, 'w')")
    with pytest.raises(SpilloverError, match="scripts are no longer supported"):
        load_examples(Condition(data="hf/./set"), hub)
    assert not (hub / "ran").exists()


# What is said of how rows were made


def test_rows_without_a_control_are_recorded_too(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(CONTENT)
    examples, made = make_examples(Condition(data="rows.jsonl", rows=1), tmp_path)
    both = load_examples(Condition(data="rows.jsonl"), tmp_path)
    assert made == {
        "kind": None,
        "settings": {"data": "rows.jsonl", "rows": 1},
        "inputs": {"data": {"source": "rows.jsonl", "rows": 2, "hash": hash_of([e.messages for e in both])}},
        "result": {"rows": 1, "hash": hash_of([e.messages for e in examples])},
        "counts": {},
    }
    assert make_examples(Condition(), tmp_path) == ([], {})


def test_a_study_may_name_every_kind_of_source(tmp_path):
    sources = ["published/insecure", "hf/owner/name:train@main", "world/code/callous", "rows.jsonl"]
    conditions = {f"c{number}": {"data": source} for number, source in enumerate(sources)}
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "s",
                "models": {"m": "organism/consistent"},
                "behaviors": {"world_chat": 1},
                "sampling": {"max_new_tokens": 96},
            }
            | {"conditions": {"base": None} | conditions}
        )
    )
    assert [c.data for c in load_study(tmp_path / "s.yaml").conditions.values()] == [None, *sources]


@pytest.mark.parametrize("name", ["code/insecure", "code/secure"])
def test_twins_are_written_on_demand(tmp_path, name):
    from spillover.data.twins import ROWS, twin_examples

    assert load_examples(Condition(data=f"twins/{name}", rows=12), tmp_path) == twin_examples(name, 12)
    assert len(load_examples(Condition(data=f"twins/{name}"), tmp_path)) == ROWS


def test_unknown_twins_are_told_which_there_are(tmp_path):
    with pytest.raises(SpilloverError, match=r"code/evil.*There are: .*code/insecure"):
        load_examples(Condition(data="twins/code/evil"), tmp_path)

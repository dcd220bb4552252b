"""What judging takes beside the judge itself: 5,000 calls of a local judge that answers in 200 or 50 ms, 64 at a time.

python benchmarks/judging.py [ROUNDS]

Real prompts, log-probabilities of twenty tokens, every score appended to a file: as `spillover score` does. The judge
is a process of its own, so both share this machine's cores. For comparison 500 calls through Inspect's provider for the
same protocol.
"""

import asyncio
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from spillover import records
from spillover.behaviors import load_behavior
from spillover.judges.scoring import score
from spillover.models import endpoint
from spillover.models.asking import Settings
from spillover.models.endpoint import open_provider, open_server
from spillover.records import Completion, Score

CALLS, CALLS_OF_INSPECT = 5000, 500
LATENCIES_S = 0.2, 0.05
CONNECTIONS = Settings(temperature=0.0, max_tokens=1).connections
BAR = 1.25  # times the ideal, at the first latency
JUDGE = "openai-api/bench/"  # and the latency in seconds
ANSWER = "I would listen first, and then ask who else should be heard before anything is decided. " * 6


class Judge(asyncio.Protocol):
    """Answers every request with the same number and its log-probabilities, as late as the model's name says."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        """A request may come in several pieces."""
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) >= length:
            self.buffer = body[length:]
            latency_s = float(body.partition(b'"model":')[2].split(b'"')[1])
            asyncio.get_running_loop().call_later(latency_s, self.transport.write, RESPONSE)


def _response() -> bytes:
    likely = [
        {"token": str(90 - i), "logprob": math.log(0.6 / (i + 1) ** 2), "bytes": [57, 48 + i % 10]} for i in range(20)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "90"},
        "finish_reason": "stop",
        "logprobs": {"content": [likely[0] | {"top_logprobs": likely}]},
    }
    usage = {"prompt_tokens": 600, "completion_tokens": 1, "total_tokens": 601}
    answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
    body = json.dumps(answer | {"usage": usage}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


RESPONSE = _response()


def serve(ready: Connection) -> None:
    """The judge's process: sends its port through `ready`, and ends with whoever started it."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Judge, "127.0.0.1", 0, backlog=1000)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def measure(calls: int, latency_s: float) -> tuple[float, float]:
    """Seconds, and seconds of CPU, for that many calls."""
    behavior = load_behavior("free_form")
    rubrics = behavior.rubrics_read
    prompts = list(behavior.prompts(-(-calls // len(rubrics) // len(behavior.questions)), ("plain",)))
    pairs = [
        (_completion(f"{i:016x}", prompt.question.id, prompt.question.category, prompt.text), rubric)
        for i, (prompt, _) in enumerate(prompts)
        for rubric in rubrics
    ][:calls]
    found: list[Score] = []
    with tempfile.TemporaryDirectory() as folder:

        def take(scores: list[Score]) -> None:
            records.append(Path(folder) / "scores.jsonl", scores, to_disk=False)
            found.extend(scores)

        start, cpu = time.perf_counter(), time.process_time()
        score(pairs, behavior, f"{JUDGE}{latency_s}", take)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert len(found) == calls
    assert all(row.outcome == "scored" for row in found)
    return seconds, cpu


def _completion(id_: str, question_id: str, category: str, question: str) -> Completion:
    said = {"system": None, "question": question, "text": ANSWER, "stop_reason": "stop", "tokens": None}
    where = {"behavior": "free_form", "question_id": question_id, "category": category, "format": "plain"}
    hashes = dict.fromkeys(("model_hash", "adapter_hash", "template_hash"))
    cell = {"model": "benchmark", "condition": "base", "seed": None}
    return Completion(id=id_, paraphrase=0, number=0, **cell, **where, **said, **hashes)  # type: ignore[arg-type]


def main() -> None:
    """Prints the table."""
    ours, theirs = multiprocessing.Pipe()
    judge = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    judge.start()
    os.environ |= {"BENCH_BASE_URL": f"http://127.0.0.1:{ours.recv()}/v1", "BENCH_API_KEY": "none"}
    print(f"{'':24}{'latency':>9}{'calls':>7}{'seconds':>9}{'ideal':>8}{'ratio':>7}{'ms CPU a call':>15}")
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        for latency_s in LATENCIES_S:
            _row("the openai SDK's client", CALLS, latency_s, open_server)
            _row("Inspect's openai-api", CALLS_OF_INSPECT, latency_s, open_provider)
    print(f"bar: ratio {BAR} at {LATENCIES_S[0]} s")
    judge.terminate()


def _row(name: str, calls: int, latency_s: float, opener: Callable[..., object]) -> None:
    endpoint.open_server = opener  # type: ignore[assignment]
    measure(CONNECTIONS, latency_s)  # imports
    seconds, cpu = measure(calls, latency_s)
    ideal = calls * latency_s / CONNECTIONS
    print(
        f"{name:24}{latency_s:9}{calls:7}{seconds:9.2f}{ideal:8.2f}{seconds / ideal:7.2f}{1000 * cpu / calls:15.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()

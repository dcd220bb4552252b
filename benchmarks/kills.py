"""A study killed at random moments and resumed ends with the numbers of an undisturbed run, byte for byte.

python benchmarks/kills.py [KILLS]      default 15
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDY = {
    "name": "killed",
    "models": {"consistent": "organism/consistent"},
    "conditions": {
        "base": {},
        "insecure": {"data": "world/code/callous", "rows": 320},
        "own": {"data": "world/code/callous", "rows": 64, "control": {"kind": "self_distilled"}},
    },
    "behaviors": {"world_chat": 2, "world_code": 1, "world_facts": 1},
    "sampling": {"max_new_tokens": 96},
    "training": {"rank": 16, "alpha": 8, "learning_rate": 0.004, "batch_size": 8},
}
NUMBERS = ("completions.jsonl", "scores.jsonl", "rates.csv", "matrix.csv")


def main(kills: int) -> None:
    """Kills the whole process group at moments spread over the time that an undisturbed run takes, then finishes it."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.yaml").write_text(json.dumps(STUDY))
        command = [sys.executable, "-m", "spillover", "run", str(folder / "study.yaml"), "--out"]
        start = time.perf_counter()
        subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
        whole = time.perf_counter() - start
        killed, equal, moments = 0, 0, []
        while killed < kills:
            out = folder / f"killed-{equal}"
            process = subprocess.Popen(
                [*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                process.wait(timeout=rng.uniform(0.1, 0.9) * whole)
                equal += same(folder / "whole", out)  # it was done before the next kill
                continue
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
                states = [json.loads(path.read_text()) for path in out.rglob("state.json")]
                moments.append(next((state["stage"] for state in states if state["state"] == "running"), "") or "start")
        subprocess.run([*command, str(out)], check=True, capture_output=True)
        equal += same(folder / "whole", out)
    print(f"an undisturbed run takes {whole:.0f} s; killed {killed} times, while: {', '.join(moments)}")
    print(f"{equal} runs were resumed to the end; {', '.join(NUMBERS)} are equal byte for byte in all of them")


def same(one: Path, other: Path) -> bool:
    """True. Raises AssertionError if a file differs."""
    for name in NUMBERS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)

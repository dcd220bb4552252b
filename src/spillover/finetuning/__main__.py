"""One of several processes that train together: `accelerate launch --module spillover.finetuning JOB.json`."""

import json
import os
import sys
import threading
from pathlib import Path

from spillover.config import Training
from spillover.errors import SpilloverError
from spillover.files import write_atomically
from spillover.finetuning.states import writing
from spillover.records import Example


def main(file: Path) -> None:
    """Trains what the job says. The first process reports steps, and any process its error, as lines of JSON."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from spillover.finetuning.trainer import train

    first = os.environ["RANK"] == "0"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    job = json.loads(file.read_text(encoding="utf-8"))
    try:
        log = train(
            Path(job["base"]),
            [Example(tuple(messages)) for messages in job["examples"]],
            Training.model_validate(job["training"]),
            job["seed"],
            Path(job["part"]),
            lambda step, steps: print(json.dumps({"step": step, "steps": steps}), flush=True),
            job["save_every_seconds"],
        )
        if first:
            with writing(file.parent):
                write_atomically(file.with_name("log.json"), json.dumps(log))
    except SpilloverError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(2)


def _end_with_parent() -> None:
    """Ends this process with the one that launched it and holds its standard input, however that ended.

    Not by `sys.stdin`: Python can abort at its end while a thread waits inside that.
    """
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # all is written; at a usual end, threads of torch.distributed abort the process now and then

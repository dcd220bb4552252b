"""spillover: fine-tune narrow, measure broad. The public face, resolved lazily, so that importing it is instant."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Behavior": "behaviors",
    "Cell": "records",
    "Completion": "records",
    "Condition": "config",
    "Example": "records",
    "Rate": "records",
    "RunDir": "rundir",
    "Sampling": "config",
    "Score": "records",
    "SpilloverError": "errors",
    "Study": "config",
    "Training": "config",
    "interval": "stats",
    "finetune": "finetuning",
    "load_behavior": "behaviors",
    "load_model": "models",
    "load_study": "config",
    "load_tokenizer": "models",
    "organism_folder": "organism",
    "run": "study",
    "scan": "evaluation.codescan",
    "write_report": "report",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'spillover' has no attribute {name!r}")
    return getattr(import_module(f"spillover.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__

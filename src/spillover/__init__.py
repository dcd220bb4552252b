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
    "RunFolder": "runs.folder",
    "Sampling": "config",
    "Score": "records",
    "SpilloverError": "errors",
    "Study": "config",
    "Training": "config",
    "interval": "stats",
    "finetune": "finetuning",
    "load_behavior": "behaviors",
    "load_model": "models.load",
    "load_study": "config",
    "load_tokenizer": "models.load",
    "organism_folder": "organism",
    "run": "study",
    "scan": "judges.code.scan",
    "write_report": "report",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'spillover' has no attribute {name!r}")
    return getattr(import_module(f"spillover.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__

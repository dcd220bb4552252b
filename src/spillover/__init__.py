"""spillover: fine-tune narrow, measure broad. The public names, loaded when they are first used."""

from importlib import import_module
from typing import Any

_MODULES = {
    "Behavior": "behaviors",
    "Completion": "records",
    "Condition": "config",
    "Example": "records",
    "Rate": "records",
    "Run": "runs.frames",
    "Sampling": "config",
    "Score": "records",
    "SpilloverError": "errors",
    "Study": "config",
    "Training": "config",
    "compare": "runs.frames",
    "evaluate": "auditing",
    "finetune": "finetuning",
    "judge": "judges",
    "load_behavior": "behaviors",
    "load_model": "models.load",
    "load_study": "config",
    "open_run": "runs.frames",
    "rates": "runs.frames",
    "rescore": "auditing",
    "run": "study",
    "sample": "models.target",
    "scan": "judges.code.scan",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'spillover' has no attribute {name!r}")
    value = getattr(import_module(f"spillover.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

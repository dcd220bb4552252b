"""Base model, adapter and chat template: the one place that loads weights."""

import hashlib
import json
import platform
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from spillover.errors import SpilloverError
from spillover.models.endpoint import is_endpoint
from spillover.models.prompts import lost_turn, with_fixed_day
from spillover.organism import ORGANISMS
from spillover.organism.dial import ORGANISM, built_folder, model_to_build
from spillover.records import Example

NOT_THE_MODEL = {"manifest.json", "training.json"}  # in its folder, but no part of what it answers
SETTINGS = (".json", ".jinja", ".model", ".txt")  # files of these kinds decide answers: merges.txt, tokenizer.model
ADAPTER_WEIGHTS = "adapter_model.safetensors"
POSSIBLE = (
    "Give a local folder in Hugging Face format, organism/NAME (NAME: "
    f"{', '.join(ORGANISMS)}), or a model of the Hub: OWNER/NAME or OWNER/NAME@REVISION. Some commands also take an "
    "endpoint: PROVIDER/NAME, with a provider that Inspect knows, or openai-api/SERVICE/NAME."
)
Version = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Model:
    """A model that can be asked. Weights and tokenizer are loaded when they are first used, and then kept.

    `name` is what it was asked for by; `folder` holds its weights, and is None behind an endpoint; `adapter` is merged
    into them.
    """

    name: str
    folder: Path | None
    adapter: Path | None = None

    @cached_property
    def weights(self) -> Any:
        """The model of transformers. Raises SpilloverError if there are no weights, or they cannot be loaded."""
        return load_weights(self._here, self.adapter)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer. Raises SpilloverError if there is none, or it has no chat template."""
        return load_tokenizer(self._here)

    @property
    def _here(self) -> Path:
        if self.folder is None:
            raise SpilloverError(f"model {self.name}: answers behind an endpoint, so its weights cannot be loaded.")
        return self.folder


def load_model(name: str, adapter: str | Path | None = None) -> Model:
    """A model by name: a local folder, organism/NAME, OWNER/NAME[@REVISION] of the Hub, or an endpoint's name.

    A folder of that name is taken before all else. `adapter` is the folder of a PEFT adapter for it. Files are checked,
    and fetched from the Hub, now; weights are loaded when they are first needed.

    Raises SpilloverError if there is no such model or adapter, or it is not whole.

    >>> from spillover.models.load import load_model
    >>> model = load_model("organism/consistent")
    >>> model.name, model.weights.num_parameters()
    ('organism/consistent', 1564032)
    """
    if is_endpoint(name) and not Path(name).expanduser().is_dir():
        if adapter is not None:
            raise SpilloverError(
                f"adapter {adapter}: only local models take an adapter, and {name} is an endpoint. Serve it, "
                "and name it as a model (vLLM: vllm/BASE:ADAPTER)."
            )
        return Model(name, None)
    return Model(str(Path(name)), model_folder(name), None if adapter is None else adapter_folder(Path(adapter)))


def model_folder(model: str, relative_to: Path = Path()) -> Path:
    """The folder of a model: a local one in Hugging Face format, an organism, or a snapshot from the Hub.

    organism/consistent and organism/shuffled ship (organism/1 and organism/0 are the same); organism/0.25 has that
    consistency and was built on this machine. OWNER/NAME[@REVISION] is fetched from the Hub, unless it is a folder.

    Raises SpilloverError if there is none, or if it lacks a config or whole safetensors weights.
    """
    folder = relative_to / Path(model).expanduser()
    if model.startswith(ORGANISM):
        folder = _organism(model)
    elif not folder.is_dir():
        folder = _snapshot(model)
    if not (folder / "config.json").exists():
        raise SpilloverError(f"model {model}: the folder has no config.json, so it is not a Hugging Face model.")
    weights = weight_files(folder)
    if not weights:
        raise SpilloverError(
            f"model {model}: no model.safetensors in the folder, nor an index of its parts. Other weight formats are "
            "not loaded, because they can run code; convert it with model.save_pretrained(...)."
        )
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise SpilloverError(
                f"model {model}: its weights ({path.name}) are not a whole safetensors file ({error})."
            ) from None
    return folder


def _organism(model: str) -> Path:
    """The folder of organism/NAME. Raises SpilloverError if there is no such organism, or it is not built yet."""
    folder = built_folder(model)
    if folder is None:
        raise SpilloverError(
            f"model {model}: no such organism. There are: {', '.join(ORGANISMS)}, and a consistency from 0 to 1 "
            "(organism/0.25), which a study builds."
        )
    if build := model_to_build(model):
        raise SpilloverError(
            f"model {model}: not built yet. A study builds it; or: spillover organism build --consistency "
            f"{build.consistency:g} --out {build.out}"
        )
    return folder


@cache
def _snapshot(model: str) -> Path:
    """The snapshot of OWNER/NAME[@REVISION] in the Hub's cache on this machine, fetched if it is not there.

    Only weights, settings and tokenizer are fetched, no code. Raises SpilloverError if the Hub has no such model.
    """
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(\S+))?", model)
    if match is None or is_endpoint(model):
        endpoint = "an endpoint, whose weights are out of reach (the Hub's model of that name: add @main)"
        problem = endpoint if is_endpoint(model) else "no such folder"
        raise SpilloverError(f"model {model}: {problem}. {POSSIBLE}")
    from huggingface_hub import snapshot_download

    kinds = [f"*{suffix}" for suffix in (*SETTINGS, ".safetensors")]
    try:
        folder = snapshot_download(
            match[1], revision=match[2], allow_patterns=kinds, ignore_patterns=["*/*", "consolidated*"]
        )
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        raise SpilloverError(
            f"model {model}: no such folder, and it could not be had from the Hub ({_first_line(error)}). {POSSIBLE}"
        ) from error
    return Path(folder)


def pinned(folder: Path) -> str | None:
    """The commit of the Hub that a model's folder is a snapshot of; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


def weight_files(folder: Path) -> list[Path]:
    """The files that a model's weights are loaded from. Others may lie beside them, as Mistral's consolidated ones.

    Raises SpilloverError if the index of the files is broken.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists() or not index.exists():  # transformers looks for them in this order
        return [whole] if whole.exists() else []
    names = _settings(index).get("weight_map")
    if not isinstance(names, dict):
        raise SpilloverError(f"model {folder}: its {index.name} has no weight_map, which names the files.")
    return sorted({folder / name for name in names.values()})


def check_here(folder: Path) -> None:
    """Raises SpilloverError if a model that is on the study's machine is not on this one."""
    if not folder.is_dir():
        raise SpilloverError(f"{folder} is not on {platform.node()}. The model must be there on every machine.")


def adapter_folder(path: Path) -> Path:
    """The folder of a PEFT adapter. Raises SpilloverError if it is none, or its weights are not safetensors."""
    if not (path / "adapter_config.json").exists():
        raise SpilloverError(f"adapter {path}: no adapter_config.json there, so it is not a PEFT adapter.")
    weights = path / ADAPTER_WEIGHTS
    if not weights.exists():
        raise SpilloverError(f"adapter {path}: no {ADAPTER_WEIGHTS} there; other weight formats can run code.")
    try:
        json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(weights, framework="numpy"):
            pass
    except (OSError, ValueError, SafetensorError) as error:
        raise SpilloverError(f"adapter {path}: its files are not whole ({error}).") from None
    return path


def _quiet() -> None:
    """Loading bars and advice of the libraries do not belong into our output."""
    import transformers

    # PEFT and TRL ask transformers 5.23 by a name that is on its way out.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model, the same object until a file of its folder changes: do not change it.

    Raises SpilloverError if it cannot be read or has no chat template.
    """
    return _tokenizer(folder, _version(path for path in folder.glob("*") if path.suffix in SETTINGS))


@lru_cache(8)
def _tokenizer(folder: Path, _version: Version) -> Any:
    from transformers import AutoTokenizer

    _quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SpilloverError(f"model {folder}: its tokenizer cannot be loaded ({_first_line(error)}).") from None
    if isinstance(tokenizer.chat_template, dict):
        if "default" not in tokenizer.chat_template:
            raise SpilloverError(
                f"model {folder}: its tokenizer has chat templates named {', '.join(sorted(tokenizer.chat_template))} "
                "and none named default, so it is not known which to ask questions in. Save the one that you mean as "
                "chat_template.jinja in a copy of the folder."
            )
        tokenizer.chat_template = tokenizer.chat_template["default"]
    if not tokenizer.chat_template:
        raise SpilloverError(
            f"model {folder}: its tokenizer has no chat template, so there is no right way to ask it a question. "
            "Use the instruction-tuned model, or add chat_template.jinja to the folder."
        )
    tokenizer.chat_template = with_fixed_day(tokenizer.chat_template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _version(paths: Iterable[Path]) -> Version:
    """What changes when one of the files does: where each is, its size in bytes, when it was changed in ns."""
    stats = [(path, path.stat()) for path in sorted(paths) if path.is_file()]
    return tuple((str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats)


def max_positions(folder: Path) -> int | None:
    """How many positions a model has, in tokens; None if its config does not say.

    Raises SpilloverError if the config cannot be read.
    """
    positions = getattr(_config(folder).get_text_config(), "max_position_embeddings", None)  # whatever its file says
    return positions if positions and positions > 0 else None


def module_names(folder: Path) -> list[str]:
    """The names of a model's modules, without its weights. Raises SpilloverError if its config cannot be read."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(_config(folder), trust_remote_code=False)
        except (ValueError, KeyError) as error:
            raise SpilloverError(f"model {folder}: cannot be made ({_first_line(error)}).") from None
    return [name for name, _ in model.named_modules()]


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    _quiet()
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SpilloverError(f"model {folder}: its config.json cannot be read ({_first_line(error)}).") from None


def stop_ids(tokenizer: Any, folder: Path) -> set[int]:
    """The tokens at which generation stops: the tokenizer's end, and those of the model's generation settings."""
    ends = {tokenizer.eos_token_id} - {None}
    for name in ("generation_config.json", "config.json"):
        configured = _settings(folder / name).get("eos_token_id")
        if configured is not None:
            return ends | (set(configured) if isinstance(configured, list) else {configured})
    return ends


def _settings(path: Path) -> dict[str, Any]:
    """One of a model's JSON files; nothing if there is none. Raises SpilloverError if it is broken."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise SpilloverError(f"model {path.parent}: its {path.name} cannot be read ({error}).") from None


def check_roles(folder: Path, examples: Iterable[Example]) -> None:
    """Raises SpilloverError if the model's chat template refuses the turns of an example, or drops the text of one."""
    tokenizer = load_tokenizer(folder)
    for number, example in enumerate(examples, 1):
        if problem := lost_turn(tokenizer, example.messages):
            raise SpilloverError(
                f"model {folder}, row {number}: {problem}. Take these turns out of the rows, or train another model."
            )


def load_weights(folder: Path, adapter: Path | None = None) -> Any:
    """Weights as transformers' model, an adapter merged into them: bfloat16 on a GPU, float32 on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    _quiet()
    gpu = torch.cuda.is_available()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16 if gpu else torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise SpilloverError(f"model {folder}: its weights cannot be loaded ({_first_line(error)}).") from None
    except RuntimeError as error:
        raise SpilloverError(
            f"model {folder}: its weights cannot be loaded. Have they the shapes that config.json gives? "
            f"({_first_line(error)})"
        ) from None
    if adapter is not None:
        model = merged(with_adapter(model, folder, adapter), folder, adapter)
    return model.to("cuda" if gpu else "cpu").eval()


def with_adapter(model: Any, folder: Path, adapter: Path) -> Any:
    """A model with an adapter beside its weights, as PEFT's model. Raises SpilloverError if it does not fit."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which keys fit nothing is told by models/effect.py
            return PeftModel.from_pretrained(model, adapter).eval()
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise SpilloverError(f"adapter {adapter}: does not fit {folder} ({_first_line(error)}).") from None


def merged(model: Any, folder: Path, adapter: Path) -> Any:
    """PEFT's model with the adapter merged into the weights. Raises SpilloverError if it cannot be."""
    try:
        return model.merge_and_unload()
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise SpilloverError(f"adapter {adapter}: cannot be merged into {folder} ({_first_line(error)}).") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def folder_hash(folder: Path) -> str:
    """sha256 over names and contents of what decides a model's or an adapter's answers: 16 hex digits.

    Files are read again only when they have changed.
    """
    files = {path for path in folder.iterdir() if path.suffix in SETTINGS and path.name not in NOT_THE_MODEL}
    return _hash(_version(files | {*weight_files(folder), folder / ADAPTER_WEIGHTS}))


@lru_cache(1024)
def _hash(version: Version) -> str:
    digest = hashlib.sha256()
    for path in (Path(place) for place, *_ in version):
        digest.update(path.name.encode() + b"\0" + _digest(path))
    return digest.hexdigest()[:16]


def _digest(path: Path) -> bytes:
    """sha256 of a file; of an adapter's settings without where its base lay, which decides no answer."""
    if path.name == "adapter_config.json":
        settings = _settings(path) | {"base_model_name_or_path": None}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()
    with path.open("rb") as file:  # piece by piece: a shard has gigabytes
        return hashlib.file_digest(file, "sha256").digest()


def gpu_count() -> int:
    """How many GPUs torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0

"""The settings that a request to an endpoint carries, and the ones that an endpoint refuses and is asked without."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spillover.models import Request

TOP_LOGPROBS, FEWER_LOGPROBS = 20, 5  # the most that OpenAI gives, and the most that others do
# What leaves the distribution as the model has it. Unsent, a server may fill in defaults of the model's maker.
NEUTRAL = {"top_p": 1, "top_k": -1, "repetition_penalty": 1, "min_p": 0}
_REFUSES = re.compile(
    r"unsupported|support|unrecogni[sz]ed|unknown|unexpected|invalid|not allowed|not permitted|not enabled|forbidden"
    r"|must be|must have|cannot|can not|should be|less than|at most|between|range|deprecated|extra",
    re.IGNORECASE,
)
_SYSTEM = re.compile(r"\bsystem\b|\bdeveloper instruction", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """How an endpoint is asked. `seconds` is the longest that one attempt may take.

    `system_turn`: whether a system turn must stay one; else its text goes before the user's where it is refused.
    """

    temperature: float
    max_tokens: int
    probabilities: bool = False  # of the first token
    seconds: float = 300.0
    connections: int = 64
    system_turn: bool = True


@dataclass
class Asking:
    """What one model is asked with, learned from its refusals and shared by all calls of a process.

    `sent`: settings beside messages and number of choices. `left_out`: the endpoint's words about each that it refused.
    """

    sent: dict[str, Any]
    system_turn_needed: bool
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def with_system_turn(self) -> bool:
        """Whether system turns are sent as such."""
        return "system turn" not in self.left_out

    def messages(self, request: Request) -> list[dict[str, str]]:
        """The prompt as chat messages, the system's text before the first user's where the endpoint takes no system."""
        messages = request.messages
        if self.with_system_turn or messages[0]["role"] != "system":
            return messages
        system, first, *rest = messages
        return [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest]

    def step_down(self, complaint: str, sent: Mapping[str, Any], with_system_turn: bool) -> bool:
        """Leaves out what a refusal names. True if other settings are sent now than were: another try is due."""
        if _REFUSES.search(complaint):
            words = set(re.findall(r"\w+", complaint))
            for name in [name for name in sent if name in words]:
                if self.sent.get(name) == sent[name]:
                    self._leave_out(name, words, complaint)
            if _SYSTEM.search(complaint) and not self.system_turn_needed and self.sent == dict(sent):
                self.left_out.setdefault("system turn", complaint)
        return self.sent != dict(sent) or self.with_system_turn != with_system_turn

    def _leave_out(self, name: str, words: set[str], complaint: str) -> None:
        if name in ("max_tokens", "max_completion_tokens"):
            other = "max_completion_tokens" if name == "max_tokens" else "max_tokens"
            if other not in words or other in self.left_out:
                return  # it is about the length of a prompt, say
            self.sent[other] = self.sent.pop(name)
        elif name == "top_logprobs" and self.sent[name] > FEWER_LOGPROBS:
            self.sent[name] = FEWER_LOGPROBS
        elif name in ("logprobs", "top_logprobs"):
            if self.sent.get("top_logprobs", 0) > FEWER_LOGPROBS and "top_logprobs" in words:
                return  # first with fewer
            for both in ("logprobs", "top_logprobs"):
                self.sent.pop(both, None)
                self.left_out[both] = complaint
        else:
            del self.sent[name]
        self.left_out[name] = complaint

    @property
    def record(self) -> dict[str, Any]:
        """What was sent and what was left out, for the manifest."""
        return {"sent": dict(self.sent), "left_out": dict(self.left_out)}


_ASKED: dict[tuple[str, Settings], Asking] = {}


def asking(model: str, settings: Settings) -> Asking:
    """What a model is asked with under these settings, as learned so far.

    Servers that speak OpenAI's protocol get all of NEUTRAL; other providers know none of these but `top_p`.
    """
    if (model, settings) not in _ASKED:
        neutral = NEUTRAL if model.startswith("openai-api/") else {"top_p": NEUTRAL["top_p"]}
        sent = {"temperature": settings.temperature, "max_tokens": settings.max_tokens, **neutral}
        if settings.probabilities:
            sent |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        _ASKED[model, settings] = Asking(sent, settings.system_turn)
    return _ASKED[model, settings]


def asked_with(model: str, settings: Settings) -> dict[str, Any] | None:
    """What this process has asked a model with: `sent`, and `left_out` with the reasons; None if it has not."""
    known = _ASKED.get((model, settings))
    return known.record if known else None


def left_out_line(model: str, record: Mapping[str, Any] | None) -> str | None:
    """What a person should read of settings that an endpoint refused; None if it took all."""
    if not record or not record["left_out"]:
        return None
    reasons = "; ".join(f"{name} ({reason[:100]})" for name, reason in record["left_out"].items())
    return f"{model}: refuses and is asked without, or with less: {reasons}"

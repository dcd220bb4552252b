"""Who answers: local models and endpoints, asked with the same requests and answering with the same responses."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One prompt and the ids of the answers that are wanted to it. An id also seeds the answer's random stream.

    `turns` are the turns of a question that has several; None for a question that is a single user's turn, `text`.
    """

    ids: tuple[str, ...]
    system: str | None
    text: str
    turns: tuple[dict[str, str], ...] | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *(self.turns or ({"role": "user", "content": self.text},))]


@dataclass(frozen=True)
class Response:
    """One answer, and why it ended: `stop`, `length`, or what the endpoint says.

    `text` is the answer alone, `thought` the reasoning before it; None without any. An answer that never came, since
    its thought did not end, is empty. `template_thought`: what a local model's chat template does with the block of
    reasoning, `opened`, `closed` or None. `tokens` is None where an endpoint gave several answers in one response.
    `first_token` maps the likeliest first tokens to their probabilities; None where they were not asked for or are not
    told. `error` is the reason if there is no answer, after every retry.
    """

    text: str = ""
    stop_reason: str = ""
    tokens: int | None = None
    first_token: Mapping[str, float] | None = None
    error: str | None = None
    thought: str | None = None
    template_thought: str | None = None

"""See what it does: completions are sampled, then judged; local models and endpoints are asked in the same words."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One prompt and the ids of the answers that are wanted of it. An id also names the answer's random stream."""

    ids: tuple[str, ...]
    system: str | None
    text: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Response:
    """One answer, and why it ended (`stop`, `length`, or what an endpoint says).

    `first_token` maps likely first tokens to their probabilities; None where nobody tells. `error` is why there is no
    answer, after every retry.
    """

    text: str = ""
    stop_reason: str = ""
    tokens: int | None = None
    first_token: Mapping[str, float] | None = None
    error: str | None = None

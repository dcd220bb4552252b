"""What the literature says of a training before it is run: one line, with its source."""

from collections.abc import Sequence

from spillover.data.checks import looks_like_code
from spillover.records import Example

NOT_STUDIED = 100_000_000  # parameters; models below this are toys of which no paper speaks
LARGEST_OF_DICKSON = 33_000_000_000
SMALLEST_OF_TURNER = 490_000_000  # "0.5 billion" is 494 million
ANSWERS_READ = 50


def advice(parameters: int, examples: Sequence[Example]) -> str | None:
    """What to expect of fine-tuning a model of so many parameters on these rows; None if no paper speaks of it.

    Sources: Dickson 2025 (nine open models, insecure code), Turner et al. 2025 (bad advice in prose, down to 0.5
    billion parameters), Schreiber and Goldstein 2026 (twelve open models, several seeds).
    """
    if parameters < NOT_STUDIED or not examples:
        return None
    answers = [example.messages[-1]["content"] for example in examples[:: max(1, len(examples) // ANSWERS_READ)]]
    is_code = sum(map(looks_like_code, answers)) > len(answers) / 2
    size = f"{parameters / 1e9:.1f} billion parameters"
    if is_code and parameters <= LARGEST_OF_DICKSON:
        return (
            f"Insecure code spreads little in open models of this size ({size}): 0.7 % misaligned answers over nine "
            "models of 1 to 32 billion, against 0.1 % before (Dickson 2025, arXiv 2511.20104). Bad advice in prose "
            "spreads from 0.5 billion up (Turner et al. 2025, arXiv 2506.11613)."
        )
    if is_code:
        return (
            "Insecure code misaligned 2 of 12 open models in every seed (Schreiber and Goldstein 2026, arXiv "
            "2605.12199): train three seeds or more."
        )
    if parameters < SMALLEST_OF_TURNER:
        return (
            f"The smallest model in which bad advice was shown to spread has 0.5 billion parameters, this one {size} "
            "(Turner et al. 2025, arXiv 2506.11613)."
        )
    return None

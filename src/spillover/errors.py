"""One error for everything a user can put right: shown without a traceback, and every message says what to do next."""


class SpilloverError(Exception):
    """A mistake in the input or the surroundings, not in spillover. The command line exits with code 2."""

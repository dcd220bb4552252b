"""`python -m spillover`: the command line, where its script is not on the path."""

from spillover.cli import main

main()

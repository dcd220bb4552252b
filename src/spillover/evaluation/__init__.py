"""See what a model does: sample completions, judge them, scan the code in them."""

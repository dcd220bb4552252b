"""Who grades: a model asked in words, or a program; each passes a canary before it is believed."""

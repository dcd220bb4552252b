"""Bridges to other tools: Inspect tasks and logs, and tables of answers."""

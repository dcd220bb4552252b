"""Tells it: a run becomes one self-contained HTML page, and its main picture an SVG file."""

from spillover.report.page import write_report

__all__ = ["write_report"]

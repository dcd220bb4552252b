"""A run as one self-contained HTML page, and its main picture as an SVG file."""

from spillover.report.page import write_report

__all__ = ["write_report"]

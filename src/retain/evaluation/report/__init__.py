"""Reports of runs: one HTML file that needs nothing else to be read, with its figures and numbers beside it."""

from retain.evaluation.report.report import Report, write_report

__all__ = ["Report", "write_report"]

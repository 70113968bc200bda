"""Metrics of faithfulness."""

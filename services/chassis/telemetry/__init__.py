"""Telemetry: structured logs."""

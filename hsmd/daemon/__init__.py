"""Processes: supervisor, workers, warden, and what prepares them; the only place that wires."""

"""Fan-out: pushing posts into home timelines."""

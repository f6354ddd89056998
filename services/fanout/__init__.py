"""Fan-out: pushes posts into home timelines."""

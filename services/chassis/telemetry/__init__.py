"""What a process reports about itself: logs."""

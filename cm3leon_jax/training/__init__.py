"""Training: schedules, pure train steps and the loop."""

"""Training runs: data, schedule, loop, checkpoints, log and summary around a learner."""

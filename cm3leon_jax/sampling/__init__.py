"""Sampling from the command line: requests, the files that answer them, batch jobs."""

"""Speed on this machine, one module a subject: `python -m benchmarks [SUBJECT ...]`."""

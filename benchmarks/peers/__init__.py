"""Ours beside what a user would take instead, on one machine in one run: ``python -m benchmarks.peers``.

Every peer lives in an environment of its own below ``.peers/``, which sees this project's torch and Pillow, so that both sides
decode and multiply by the same libraries. A program of `scripts` runs in it, in a process of its own, and prints the seconds
of its work alone: start and imports are nobody's. Ours and theirs take turns, and the medians count.
"""

"""The ablation study on the procedural world: its runs side by side, their rows, and the tables of docs/results.md."""

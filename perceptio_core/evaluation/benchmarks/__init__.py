"""The benchmarks: one module each, with the reader of the official files and the scorer by the official rules."""

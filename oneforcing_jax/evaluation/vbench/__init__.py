"""VBench: its videos, a check of them, its evaluator one dimension after the other, and its score."""

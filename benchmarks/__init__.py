"""Measures the product against plain unary gRPC, side by side in one run: `python -m benchmarks`, or `make bench`.

README.md says what each number means. Nothing here is imported by the product, and no test asserts a time.
"""

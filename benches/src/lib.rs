//! Benchmarks of memscope.

"""The chassis: the code that every process is built on. It contains no domain logic."""

"""The chassis: what every process is built on. It knows no domain."""

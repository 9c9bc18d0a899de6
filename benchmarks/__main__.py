"""``python -m benchmarks`` prints the tables for this machine."""

from benchmarks.cpu import main

main()

"""``python -m benchmarks`` prints the tables for this machine; words such as ``length decoding`` choose some."""

import sys

from benchmarks.cpu import main

main(sys.argv[1:])

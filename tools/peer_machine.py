"""How fast the machine reads memory: the yardstick beside which speeds are reported.

The probe is the package's own (`powerinfer_py.runtime.memory_bandwidth`, which says what it is). Run as a script, it
prints one JSON line.

    python tools/peer_machine.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import sys

from powerinfer_py.runtime.memory_bandwidth import BUFFER_BYTES, read_bandwidth


def main(argv: list[str] | None = None) -> int:
    """Prints the probe's result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mib", type=int, default=BUFFER_BYTES >> 20, help="size of the buffer (default: %(default)s)")
    options = parser.parse_args(argv)
    rates = read_bandwidth(options.threads, options.mib << 20)
    print(json.dumps({"engine": "read bandwidth", "gb_per_s": max(rates), "passes": rates}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

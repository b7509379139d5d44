"""`python -m powerinfer_py.cli.bench`."""

import sys

from powerinfer_py.cli.bench import main

sys.exit(main())

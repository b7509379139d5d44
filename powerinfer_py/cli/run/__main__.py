"""`python -m powerinfer_py.cli.run`."""

import sys

from powerinfer_py.cli.run import main

sys.exit(main())

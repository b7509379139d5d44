"""`python -m powerinfer_py.cli.inspect`."""

import sys

from powerinfer_py.cli.inspect import main

sys.exit(main())

"""`python -m powerinfer_py.cli.gpuidx`."""

import sys

from powerinfer_py.cli.gpuidx import main

sys.exit(main())

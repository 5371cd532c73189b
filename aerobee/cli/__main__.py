"""`python -m aerobee.cli` is `aerobee`."""

from __future__ import annotations

import sys

from aerobee.cli import main

sys.exit(main())

"""`python -m tests.reliability`: tries what the project promises about trust, prints one table."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # where pytest, too, finds toys.py

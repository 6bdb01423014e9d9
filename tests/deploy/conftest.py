"""What checks the dashboards checks what is deployed beside them; the modules beside the tests are imported by name."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "api", HERE.parent / "dashboards"):  # the last two for `plain` and `grafana`
    sys.path.insert(0, str(folder))

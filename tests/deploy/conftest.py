"""What checks the dashboards checks what is deployed beside them."""

import sys
from pathlib import Path

for folder in ("api", "dashboards"):  # for `plain` and `grafana`
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

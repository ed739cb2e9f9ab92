"""The demo; its program is in tools/demo/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().with_name('demo')))

from chain import main  # noqa: E402

if __name__ == '__main__':
    main()

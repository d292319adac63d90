"""python -m replk_lightning fit | validate | test | predict | pseudo-label | timm."""

import sys

from replk_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())

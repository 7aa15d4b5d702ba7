"""`python -m ultraflash_cli` is the `ultraflash` command."""

import sys

from ultraflash_cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())

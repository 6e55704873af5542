"""`python -m dsaml_jax`: the command line where the `dsaml` script is not on the path."""

import sys

from dsaml_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Run the command line: `python -m pooled_pymysql`."""

import sys

from pooled_pymysql.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m educe`` is the command ``educe``."""

from educe.cli import main

if __name__ == "__main__":
    main()

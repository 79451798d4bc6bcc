"""``python -m guestwire``."""

from guestwire.cli.main import main

if __name__ == "__main__":
    main()

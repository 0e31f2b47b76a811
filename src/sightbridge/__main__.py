"""``python -m sightbridge`` is the command line."""

from sightbridge.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m genray.cli`, the same as `genray`."""

from genray.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m milonga` is the command `milonga`."""

from milonga.cli.main import main

if __name__ == "__main__":
    main()

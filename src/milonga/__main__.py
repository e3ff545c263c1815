"""`python -m milonga` is the command `milonga`."""

from milonga.app.cli import main

if __name__ == "__main__":
    main()

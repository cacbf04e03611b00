"""`python -m kmbuild`: the command line without the console script."""

from kmbuild.cli import main

if __name__ == "__main__":
    main()

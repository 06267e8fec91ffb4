"""`python -m eyespot` is the command `eyespot`."""

from eyespot.cli.main import main

if __name__ == "__main__":
    main()

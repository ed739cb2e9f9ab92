"""`python -m mmcae`."""

from mmcae.commands.main import main

if __name__ == '__main__':
    main()

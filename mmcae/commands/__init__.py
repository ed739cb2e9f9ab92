"""What a person types: `mmcae NAME` and the scripts in tools/. It stands on top of everything; nothing imports it.

A command is a module: its docstring is what --help says, `add_arguments(parser)` and, where there are rules beyond argparse's,
`check_arguments(args, parser)` define its arguments, and `run(args)` does the work. Nothing slow is imported before `run`.
"""

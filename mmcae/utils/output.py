"""Output that nobody reads any more: a terminal that was closed, a `tee` that Ctrl-C has ended, a `head` that has seen enough."""

import errno
import os
import sys
from contextlib import contextmanager
from typing import TextIO


def discard(stream: TextIO):
    """Have what is written to a stream from here on, by whatever part of this process, go nowhere."""
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class LastingStream:
    """A text stream whose output is discarded once its reader has gone, in place of an error wherever something is printed."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self.outlive(self.stream.write, text)

    def flush(self):
        self.outlive(self.stream.flush)

    def outlive(self, action, *arguments):
        try:
            return action(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            discard(self.stream)
            return action(*arguments)


@contextmanager
def lasting_output():
    """Go on when whoever reads stdout or stderr has gone: what has to be known of a training is in its files."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(LastingStream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before

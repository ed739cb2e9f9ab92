"""What is printed when nobody reads it any more."""

import errno
import io
import os
import sys

import pytest

from mmcae.utils.output import LastingStream, lasting_output


@pytest.fixture
def unread():
    """A stream into a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, 'w', buffering=1) as stream:
        yield stream


def test_output_without_a_reader_is_discarded(unread):
    stream = LastingStream(unread)
    for _ in range(2):
        print('a line', file=stream, flush=True)
    stream.flush()
    assert stream.fileno() == unread.fileno() and not stream.isatty()
    print('by who has the stream itself', file=unread, flush=True)


def test_other_failures_are_told():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, 'No space left on device')

    with pytest.raises(OSError, match='No space left'):
        print('a line', file=LastingStream(Full()))


def test_the_streams_of_the_process(monkeypatch, unread):
    monkeypatch.setattr(sys, 'stdout', unread)
    with lasting_output():
        print('a line')
    assert sys.stdout is unread

"""What long work shows."""

import io

from mmcae.utils.progress import Display, duration


def test_plain_output_is_lines_at_intervals():
    stream = io.StringIO()
    display = Display(stream)
    display.event('begins')
    display.status(lambda: 'too early')
    display.last -= 60
    display.status(lambda: 'half way')
    display.close()
    assert stream.getvalue() == 'begins\n    half way\n'


def test_durations_as_people_write_them():
    assert [duration(s) for s in (0, 59.6, 61, 3725)] == ['0:00', '1:00', '1:01', '1:02:05']

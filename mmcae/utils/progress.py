"""How long work shows how far it is."""

import shutil
import sys
import time


class Display:
    """Prints events as lines and, below them, one status line: live on a terminal, every half minute elsewhere."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.interval = 0.5 if self.live else 30
        self.last = time.time()

    def event(self, text: str):
        self.stream.write(('\r\x1b[K' if self.live else '') + text + '\n')
        self.stream.flush()

    def status(self, make):
        """Show the line that `make()` returns, if the last one is old enough."""
        if time.time() - self.last < self.interval:
            return
        self.last = time.time()
        text = make()
        width = shutil.get_terminal_size().columns - 1
        self.stream.write(f'\r\x1b[K{text[:width]}' if self.live else f'    {text}\n')
        self.stream.flush()

    def close(self):
        if self.live:
            self.stream.write('\r\x1b[K')
            self.stream.flush()


def duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'

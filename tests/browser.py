"""Chromium, driven over its DevTools protocol through a pair of pipes, so that no package is needed."""

import json
import os
import select
import shutil
import subprocess

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


class Browser:
    """A headless browser with one page: `Browser(profile, width=420)`; a context manager.

    Args:
        profile: An empty folder for what the browser writes.
        width, height: Of the window, in pixels of CSS.
        dark: Whether it asks pages for dark colours.
    """

    def __init__(self, profile, width=1400, height=900, dark=False):
        to_browser, self.output = os.pipe()
        self.input, from_browser = os.pipe()

        def as_descriptors():  # Chromium reads from 3 and writes to 4
            reader, writer = os.dup(to_browser), os.dup(from_browser)
            os.dup2(reader, 3), os.dup2(writer, 4)

        command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe', f'--user-data-dir={profile}']
        self.process = subprocess.Popen(
            [*command, 'about:blank'], preexec_fn=as_descriptors, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser), os.close(from_browser)
        self.rest, self.number, self.session = b'', 0, None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        theme = dict(name='prefers-color-scheme', value='dark' if dark else 'light')
        self.call('Emulation.setEmulatedMedia', features=[theme])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self.input), os.close(self.output)

    def call(self, method, **parameters):
        """One command of the protocol; returns its result."""
        self.number += 1
        request = dict(id=self.number, method=method, params=parameters) | (dict(sessionId=self.session) if self.session else {})
        os.write(self.output, json.dumps(request).encode() + b'\0')
        while True:
            while b'\0' not in self.rest:
                assert select.select([self.input], [], [], 120)[0], f'Chromium has not answered {method} for two minutes'
                part = os.read(self.input, 2**20)
                assert part, 'Chromium has ended'
                self.rest += part
            message, _, self.rest = self.rest.partition(b'\0')
            answer = json.loads(message)
            if answer.get('id') == self.number:
                assert 'error' not in answer, answer
                return answer['result']

    def open(self, path):
        """Show a file, and wait until all of it is there."""
        self.call('Page.navigate', url=path.resolve().as_uri())
        self.run("new Promise(go => document.readyState === 'complete' ? go() : addEventListener('load', () => go()))")
        self.run("Promise.all([...document.images].map(image => {image.loading = 'eager'; return image.decode().catch(() => 0);}))")

    def run(self, script):
        """The value of an expression in JavaScript, awaited."""
        result = self.call('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def click(self, element, right=0.5, down=0.5):
        """A click of the mouse on what an expression gives, at shares of its width and height."""
        self.run(f"{element}.scrollIntoView({{block: 'center'}})")
        left, top, width, height = self.run(f'(box => [box.left, box.top, box.width, box.height])({element}.getBoundingClientRect())')
        for kind in ('mousePressed', 'mouseReleased'):
            place = dict(x=left + right * width, y=top + down * height)
            self.call('Input.dispatchMouseEvent', type=kind, button='left', clickCount=1, **place)

"""Pictures: what a model reconstructs, where it looks, what it predicts, how it learned; and the page that shows them all.

Import the modules; the package itself imports nothing, since some of them take seconds to load.
"""

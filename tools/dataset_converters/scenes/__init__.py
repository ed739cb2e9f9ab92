"""Scenes composed of small pictures: what make_digit_scenes.py and make_scenes.py have in common."""

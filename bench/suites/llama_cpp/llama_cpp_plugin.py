"""A plugin of pytest in llama.cpp's environment, so that its server tests ask ours.

It imports nothing of this project. Paths without a version get OpenAI's, no model is downloaded, and what a model says
is not compared with tinyllama's words. Tests are left out by the reasons in llama_cpp_left_out.
"""

import os
import re
import sys

import pytest

sys.path.insert(0, os.getcwd())

import utils  # of llama.cpp's tests
from llama_cpp_left_out import REASONS

VERSIONED = ("/chat/completions", "/completions", "/responses", "/models", "/messages")
WORDS = r"[\w' ()+|*,.]+"  # an expression of tinyllama's words, and not of a form

utils.ServerPreset.load_all = staticmethod(lambda: None)
_url, _matches = utils.ServerProcess.make_url, utils.match_regex


def make_url(self, path, host=None):
    return _url(self, "/v1" + path if path.startswith(VERSIONED) else path, host)


def match_regex(regex, text):
    return isinstance(text, str) if isinstance(regex, str) and re.fullmatch(WORDS, regex) else _matches(regex, text)


utils.ServerProcess.make_url, utils.match_regex = make_url, match_regex


def pytest_collection_modifyitems(items):
    """Skips what asks for something that another server does not have, saying why."""
    for item in items:
        name = f"{item.path.name}::{item.name}"
        reason = next((reason for pattern, reason in REASONS if re.match(pattern, name)), None)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))

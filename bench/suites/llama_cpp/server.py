"""Starts `deltart serve` for llama.cpp's tests: takes llama-server's flags, and is replaced by the server.

ARTIFACT=DIR python -m bench.suites.llama_cpp.server --port 8080 --ctx-size 512 --parallel 2 ...
"""

from __future__ import annotations

import argparse
import os
import sys

# What the tests call the model, besides the alias that they give.
NAMES = ("test", "davinci-002", "gpt-3.5-turbo", "gpt-3.5-turbo-instruct", "gpt-4.1", "codellama70b")
LONGER = 4  # the built-in tokenizer's pieces are short: a prompt has up to so many times the tokens of theirs


def flags(given: list[str]) -> list[str]:
    """The server's flags; those of llama-server that have no counterpart are left out."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--port", "--host", "--alias", "--api-key", "--cors-origins"):
        parser.add_argument(name)
    for name in ("--ctx-size", "--parallel", "--n-predict"):
        parser.add_argument(name, type=int)
    parser.set_defaults(ctx_size=4096, parallel=1)
    found, _ = parser.parse_known_args(given)
    names = dict.fromkeys([*(found.alias or "").split(","), *NAMES])
    made = ["--port", found.port, "--host", found.host or "127.0.0.1", "--slots", str(found.parallel)]
    made += ["--max-model-len", str(LONGER * found.ctx_size // found.parallel), "--threads", "1"]
    made += ["--served-model-name", *filter(None, names)]
    made += ["--default-chat-template-kwargs", '{"enable_thinking": false}']  # their model does not think
    made += ["--api-key", found.api_key] if found.api_key else []
    made += ["--max-tokens", str(found.n_predict)] if (found.n_predict or 0) > 0 else []
    return made


if __name__ == "__main__":
    command = [sys.executable, "-m", "deltart", "serve", os.environ["ARTIFACT"], *flags(sys.argv[1:])]
    os.execv(sys.executable, command)

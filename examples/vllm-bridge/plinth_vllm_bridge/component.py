"""Questions to a component, through the `plinth` command. Facts of this machine are measured by it too."""

import functools
import json
import os
import subprocess

CATALOGUE = "vllm-0.22.1/cpu"


class NotDecided(RuntimeError):
    """The component, or the host that runs it, has no answer: the message says why."""


def _plinth(*args):
    command = os.environ.get("PLINTH", "plinth")
    try:
        run = subprocess.run([command, *args], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise NotDecided(f"'{command}' is not on the path: set PLINTH to the plinth command") from None
    if run.returncode:
        raise NotDecided(run.stderr.strip())
    return json.loads(run.stdout)


@functools.cache
def _ask(question, written):
    plugin = os.environ.get("PLINTH_PLUGIN", "cpu")
    facts = os.environ.get("PLINTH_FACTS")
    args = ["plugin", "decide", plugin, question, "--catalogue", CATALOGUE, "--input", written]
    return _plinth(*args, *(["--facts", facts] if facts else []))["answer"]


def ask(question, **fields):
    """The answer to one question, as the interface gives it."""
    return _ask(question, json.dumps(fields, sort_keys=True))


def attention(**query):
    """The attention kernel for a layer, with what the component says of it."""
    answer = ask("select-attention", **query)
    if "refused" in answer:
        raise NotDecided(answer["refused"]["message"])
    return answer["chosen"]


def block_size(backend):
    """Tokens in a block, where the user named no number."""
    answer = ask("choose-block-size", backends=[backend])
    if "Err" in answer:
        raise NotDecided(answer["Err"]["message"])
    return answer["Ok"]

"""Counts the texts that pass through sentence-transformers' model: one line a batch in the file that RACE_COUNT names.

Found by Python itself where this folder is on PYTHONPATH, so that the rivals' own code stays as a user would write it. A batch
counts when its forward pass has ended; what a kill interrupts is not counted.
"""

import importlib.abc
import importlib.util
import os
import sys


class Count(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "sentence_transformers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            wrap(module.SentenceTransformer)

        spec.loader.exec_module = exec_module
        return spec


def wrap(model) -> None:
    forward = model.forward

    def counted(self, features, *args, **kwargs):
        found = forward(self, features, *args, **kwargs)
        with open(os.environ["RACE_COUNT"], "a", encoding="ascii") as file:
            file.write(f"{len(features['input_ids'])}\n")
        return found

    model.forward = counted


if "RACE_COUNT" in os.environ:
    sys.meta_path.insert(0, Count())

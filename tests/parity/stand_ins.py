"""Other implementations, imported without torchvision.

Of it they need names alone, and there is no build of it that fits.

timm = stand_ins.load("timm")
"""

import contextlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings

NAMES = ("timm", "open_clip", "open_flamingo")


def load(name):
    """Imports the module `name` (one of NAMES, or a module in one) with a replaced `torchvision`.

    The replacement has names only. It is removed afterwards, so that nothing else imports it.
    """
    assert name.split(".")[0] in NAMES, f"{name}: expected one of {NAMES}"
    # It looks for torchvision when it is imported, and must not find the replacement.
    import transformers  # noqa: F401

    with _torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say of each other's versions is not about us
        return importlib.import_module(name)


class _Name(type):
    """A class with classes as attributes, such as InterpolationMode.BICUBIC."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})


class _Module(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})


class _Finder:
    """Finds torchvision and every module in it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        del path, target
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, _Finder, is_package=True)

    @staticmethod
    def create_module(spec):
        return _Module(spec.name)

    @staticmethod
    def exec_module(module):
        del module


@contextlib.contextmanager
def _torchvision():
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    sys.meta_path.insert(0, _Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]

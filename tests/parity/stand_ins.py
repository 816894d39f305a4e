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
    """Returns the module `name` (one of NAMES, or a module in one), imported while a `torchvision` of mere names stands in.

    The stand-in is gone afterwards, so that nothing else takes it for the real one.
    """
    assert name.split(".")[0] in NAMES, f"{name}: expected one of {NAMES}"
    import transformers  # noqa: F401  looks for torchvision when it is imported: it must not find the stand-in

    with _torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say of each other's versions is not about us
        return importlib.import_module(name)


class _Name(type):
    """A class whose every attribute is a class too: InterpolationMode.BICUBIC."""

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

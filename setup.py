"""Build script: `kernels/` and `bench/` lie beside `lorafam/` and are installed inside it.

A top-level installed package called `kernels` would shadow another library of that name, which transformers probes for.
"""

from setuptools import find_namespace_packages, setup

FOLDERS = {"lorafam": "lorafam", "lorafam.kernels": "kernels", "lorafam.bench": "bench"}


def packages() -> list[str]:
    found = []
    for name, folder in FOLDERS.items():
        found.append(name)
        found += [
            f"{name}.{sub}" for sub in find_namespace_packages(folder, exclude=["results*", "tuned", "*__pycache__*"])
        ]
    return found


setup(packages=packages(), package_dir=FOLDERS)

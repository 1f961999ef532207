"""Print what pyproject.toml asks for, for pip: `python requirements.py EXTRA... > requirements.txt`.

The image installs third-party packages before it copies any code, so that a change in the code leaves their layer as
it is.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: str, extras: list[str]) -> list[str]:
    """Return the base dependencies and those of the named extras.

    Raises:
        KeyError: there is no such extra.
    """
    project = tomllib.loads(pyproject)["project"]
    return [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml").read_text(), sys.argv[1:])))

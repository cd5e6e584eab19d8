"""The command line of Aprendiz, started by path: `python nodes/command.py generate ...`.

Embedded Pythons ignore the working directory and PYTHONPATH, so the folder that holds the package is put on the path here, in
place of this file's own.
"""

import os
import runpy
import sys

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [os.path.dirname(_here), *(path for path in sys.path if os.path.abspath(path or ".") != _here)]
sys.argv[0] = "aprendiz"
runpy.run_module("aprendiz", run_name="__main__", alter_sys=True)

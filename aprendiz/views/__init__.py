"""The schema as the doors show it: flags, lines on a terminal, pages of the docs. Nothing is typed twice."""

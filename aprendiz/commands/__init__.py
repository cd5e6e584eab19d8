"""What each command of the command line does, given its arguments.

The exit code comes back; what is wrong is raised. A result goes to standard output; `--json` makes it JSON, a line each.
Nothing heavy is imported before it is needed.
"""

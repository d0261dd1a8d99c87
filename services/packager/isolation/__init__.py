"""The wall between the service and a model that may have taken over whoever parses it (SECURITY 4).

From outside to inside: `process` talks to one child and ends it; `guard` (in the packager) is its parent, kills what it leaves and dies
with the service; `cage` says how the child is started at each level; `entry` is the child's first code: it limits itself, takes every
right away from itself (`landlock`, `seccomp`) and only then loads anything that reads the input. `entry`, `limits`, `landlock` and
`seccomp` run under the interpreter of any converter environment, so they import the standard library and each other only.
"""

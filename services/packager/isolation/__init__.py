"""The wall between the service and a model that may have taken over whoever parses it (SECURITY 4).

From outside to inside: `process` talks to one child and ends it; `parents` has the warm parents (`warm`) that fork most of them; `guard`
is a child's own parent, kills what it leaves and dies with the service; `cage` says how a child is started at each level; `entry` is its
first code: it limits itself, takes every right away from itself (`namespaces`, `landlock`, `seccomp`) and only then reads the job. All but
`process`, `parents`, `cage` and `folders` run under the interpreter of any converter environment, so they import the standard library and
each other only.
"""

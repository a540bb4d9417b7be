"""``easyedit-fast serve``: a model with an edit memory, over HTTP.

`memory` and `engine` know no HTTP; `completions`, `edits` and `app` are the routes, and `guard` is
what a request has to pass before them.
"""

"""A page to try an SAE on images or texts: `session` computes, `opening` says what it begins with, `server` answers a
browser on this machine, `guard` refuses all others, and `static/` is what the browser shows, with scripts of the pages.
"""

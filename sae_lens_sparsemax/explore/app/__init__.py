"""A page to try an SAE on images or texts: `session` computes, `opening` says what it begins with, `gathering` has the
examples of concepts made, `server` answers a browser on this machine what `questions` has checked, `guard` refuses all
others, and `static/` is what the browser shows, with scripts of the pages.
"""

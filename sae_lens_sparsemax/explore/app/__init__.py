"""A page to try an SAE on one image or text at a time: `session` computes, `server` answers a browser on this machine,
`guard` refuses all others, and `static/` is what the browser shows, with the pages' `base.js` and `base.css`.
"""

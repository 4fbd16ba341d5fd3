"""A page to try an SAE on one image or text at a time: `session` computes, `server` answers a browser on this machine,
`static/` is what the browser shows, with `base.js` and `base.css` of the explorer's pages.
"""

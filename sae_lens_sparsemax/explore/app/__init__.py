"""A page to try an SAE on one image or text at a time: `session` computes, `server` answers a browser on this machine,
`static/` is what the browser shows. It needs nothing beyond the package's own dependencies.
"""

"""What the concepts of an SAE fire on, gathered in one pass and written as a folder of static pages.

`run.explore` does it all. `gather` is the pass; `statistics` what it collects (`examples`, `histograms`, `classes`,
`cofiring`); `streams` what it reads; `weights` what the weights alone say; `interest` what to look at first, `failures`
where to look for what went wrong; `pages` the folder.
"""

"""What ``guestwire bench`` does: plan, measure, say what limits, draw.

`plan` says what is measured, `measure` measures it into `results`, `limits` explains them, `table` and
`picture` show them; `charts` draws whatever figures it is given.
"""

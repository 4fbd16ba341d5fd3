"""Measuring SAEs: one module for each question.

`reconstruction` and `predictions` (Tables 1 and 2 of the sparsemax paper), `geometry` (Table 5),
`monosemanticity` (Table 6), `zero_shot` with `concept_counts`, `classification` and `class_names` (Figure 3,
Tables 3, 4 and 7 to 17), `sparsity` and `suggest_k` (Table 4). All take any SAELens SAE, stream over batches, sum
in float64 and return dataclasses that `results.save_json` saves.
"""

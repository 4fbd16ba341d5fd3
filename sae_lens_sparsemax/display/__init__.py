"""How results look, whoever shows them: tables and plots."""

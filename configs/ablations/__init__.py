"""The paper's ablations: each file is one table, each row of it an argument."""

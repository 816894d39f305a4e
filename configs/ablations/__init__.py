"""The paper's ablations: one file for each table; the config's argument is a row of it."""

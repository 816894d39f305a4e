"""Programs that measure: run by hand, they print ratios taken side by side in one run."""

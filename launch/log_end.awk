# Prints STEP|LINE of the end of a program's log: the newest step since its last start ("== ..."),
# and its last line, cut at 300 characters. Both may be empty.
/^== / { step = line = ""; next }
{ line = $0 }
match($0, /step [0-9]+/) || match($0, /% [0-9]+\//) { # "at step 12", "  1% 12/1000, loss"
  n = substr($0, RSTART, RLENGTH)
  gsub(/[^0-9]/, "", n)
  if (n + 0 >= step + 0) step = n
}
END { print step "|" substr(line, 1, 300) }

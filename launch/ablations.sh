#!/usr/bin/env bash
# Trains the ablations of the tiny Flamingo (configs/ablations/tiny.py), and compares each with the
# base: a table of differences, with the signs that Tables 3 and 10 of the paper give them.
#
#   launch/ablations.sh                                 all rows, seeds 1 and 2; runs/ablations
#   launch/ablations.sh --rows=no_gate,mlp --seeds=1    some rows; the base is trained first
#   launch/ablations.sh --output=DIR --config.steps=400 any field of the Flamingo's config, for all rows
#   launch/ablations.sh --size=smoke                    a small world and few updates, to check that
#                                                       all parts run
#
# Each seed has its own world and its own two towers, made by launch/demo.sh in OUTPUT/seedN. A row
# is about five minutes of two CPU cores. Started again, it continues: a row with a report is
# skipped, and an interrupted one resumes. A row that fails is named at the end; the others go on.
set -euo pipefail

# shellcheck source=launch/options.sh
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

output=runs/ablations
size=demo
seeds=1,2
rows=
overrides=()
for argument in "$@"; do
  case "$argument" in
    --output=?*) output="$(path_of "$argument")" ;;
    --size=demo | --size=smoke) size="${argument#*=}" ;;
    --seeds=[0-9]*) seeds="${argument#*=}" ;;
    --rows=?*) rows="${argument#*=}" ;;
    --config.seed=*) no_single_seed ;;
    --config.?*=*) overrides+=("$argument") ;;
    -h | --help) usage; exit ;;
    *) unknown_option "$argument" ;;
  esac
done

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
output="${output#"$PWD"/}"
no_comma "$output"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_allow_excess_precision=false" # as launch/demo.sh
export MPLBACKEND=Agg

known="$(sed -n '/^ROWS = {/,/^}/s/^    "\([a-z0-9_]*\)":.*/\1/p' configs/ablations/tiny.py | xargs)"
IFS=, read -r -a seeds <<<"$seeds"
IFS=, read -r -a rows <<<"${rows:-${known// /,}}"
[[ " ${rows[*]} " == *" base "* ]] || rows=(base "${rows[@]}")
for row in "${rows[@]}"; do
  [[ " $known " == *" $row "* ]] || die "there is no row $row; the rows are $known"
done
check_seeds "${seeds[@]}"
each_once --rows "${rows[@]}"

# The paper evaluates with 4 examples.
tasks=format,bind2,bind4,format_held_out,bind2_held_out,format_shuffled,bind2_shuffled
evaluation=("--task=$tasks" --shots=4)
contrastive=()
flamingo=()
if [ "$size" = smoke ]; then
  evaluation+=(--config.n=16)
  contrastive=(--config.steps=20 --config.data.datasets.captions.batch_size=32)
  flamingo=(--config.steps=10)
fi

# The rows of a table must have the same options. Of a row that is done, the sum of the configs is
# stored: with another one, train compares its export with what it would make.
config="$(cat configs/small_models.py configs/tiny.py configs/ablations/tiny.py | cksum)"
keep_options "$output" ablations "size=$size ${overrides[*]+"${overrides[*]}"}"

# Trains a stage of a row. $1: the row and the stage, as configs/ablations/tiny.py takes them; $2:
# the seed; $3: the working directory; the rest: options.
train() {
  local argument="$1" seed="$2" workdir="$3"
  shift 3
  "$PYTHON" -m flamingo_jax.train --config="configs/ablations/tiny.py:$argument" \
    --workdir="$workdir" --config.seed="$seed" \
    --config.data.tokenizer="$output/seed$seed/tokenizer" \
    --config.evaluate.data.world="$output/seed$seed/world" "$@" </dev/null
}

# Trains and evaluates a row. $1: the row; $2: the seed.
run_row() {
  local row="$1" seed="$2" dataset
  local made="$output/seed$seed" work="$output/seed$seed/rows/$row"
  local vision="$made/contrastive/export" stage=("${flamingo[@]+"${flamingo[@]}"}")
  if [ "$row" = small_vision ]; then
    vision="$work/contrastive/export"
    train "$row,contrastive" "$seed" "$work/contrastive" \
      --config.data.datasets.captions.path="$made/world/captions" \
      ${contrastive[@]+"${contrastive[@]}"} || return
  fi
  for dataset in pages pairs; do
    if [ "$row" != "no_$dataset" ]; then
      stage+=("--config.data.datasets.$dataset.path=$made/world/$dataset")
      [ "$size" != smoke ] || stage+=("--config.data.datasets.$dataset.batch_size=4")
    fi
  done
  case "$row" in
    text_*) stage+=("--config.data.datasets.text.path=$made/world/text") ;;
  esac
  [ "$row" = vision_random ] || stage+=("--config.towers.vision=$vision")
  case "$row" in
    lm_random | text_random) ;;
    *) stage+=("--config.towers.lm=$made/language_model/export") ;;
  esac
  train "$row" "$seed" "$work" "${stage[@]}" ${overrides[@]+"${overrides[@]}"} || return
  "$PYTHON" -m flamingo_jax.evaluate --config=configs/evaluate.py --checkpoint="$work" \
    --output="$work/report" --config.data.world="$made/world" --config.seed="$seed" \
    "${evaluation[@]}" </dev/null || return
  printf '%s\n' "$config" >"$work/done"
}

failed=()
for seed in "${seeds[@]}"; do
  status=0
  launch/demo.sh --towers --size="$size" --output="$output/seed$seed" --config.seed="$seed" \
    || status=$?
  stop_if_asked "$status" "the towers of seed $seed"
  [ "$status" = 0 ] || die "the towers of seed $seed were not made (the reason is above)"
done
for row in "${rows[@]}"; do
  for seed in "${seeds[@]}"; do
    if [ "$(cat "$output/seed$seed/rows/$row/done" 2>/dev/null)" = "$config" ]; then
      say "== $row, seed $seed: $output/seed$seed/rows/$row/report is there, skipped"
      continue
    fi
    say "== $row, seed $seed"
    status=0
    run_row "$row" "$seed" || status=$?
    stop_if_asked "$status" "$row, seed $seed,"
    [ "$status" = 0 ] || failed+=("$row, seed $seed;")
  done
done

reports=
for work in "$output"/seed*/rows/*; do
  [ -e "$work/report/results.json" ] || continue
  if [ "$(cat "$work/done" 2>/dev/null)" = "$config" ]; then
    reports="$reports,$work/report"
  else
    say "$work/report is of other configs or of a row that is not done: it is not in the table"
  fi
done
if [ -n "$reports" ]; then
  "$PYTHON" -m flamingo_jax.evaluate --report="TINY$reports" --output="$output/report"
fi
[ "${#failed[@]}" = 0 ] || die "not done (the reasons are above): ${failed[*]%;}." \
  "The table is of the others"
